"""Arms beyond the training context: each against itself there, and against the others, paired by seed."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from gptstar.evaluation.statistics.effects import Effect, blocked_effect
from gptstar.results.arms import CONTEXT, SEED, arms_of, by_levels, by_seed, measured, without_seed
from gptstar.results.factors import effect_table, effect_text, evidence, level_effects
from gptstar.results.frames import AT_EDGE

LOSS = "loss"


def have_equal_targets(lengths: pd.DataFrame) -> bool:
    """Return whether all readings of a study are known to have scored the same targets."""
    targets = set(lengths["targets"])
    return len(targets) == 1 and "" not in targets


def readings(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Add to each reading of a run what was varied: `runs` and `lengths` are the frames of these names.

    Controls, with attention cut, are left out: they are not how an arm reads.
    """
    lengths = lengths[lengths["context"] == "full"] if "context" in lengths else lengths
    return lengths.merge(runs[["run", "began", *factors, *({AT_EDGE} & {*runs})]], on="run")


def reading_keys(factors: Sequence[str]) -> list[str]:
    """What tells arms apart that were read at several lengths, but for their training context."""
    return [*(each for each in without_seed(factors) if each != CONTEXT), "scaling"]


def without_plain_reading(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the column `scaling` of a table in which nothing was scaled."""
    return table.drop(columns="scaling") if {*table.get("scaling", ())} == {"none"} else table


def changes(rows: pd.DataFrame, factors: Sequence[str], at: str = "multiple") -> dict[float, Effect]:
    """Find how the loss of an arm changes since its training context: paired within runs, over cells and seeds.

    Args:
        rows: the readings of one arm by one study; of several training contexts, each is a cell.
        factors: all that was varied.
        at: the column by whose values the changes are returned: `multiple` or `context_length`.

    The interval of a single run is over the text, if its study measured the change since the training context.
    """
    at_training = rows[rows["multiple"] == 1].set_index("run")["loss"]
    changed = rows.assign(since=rows["loss"] - rows["run"].map(at_training))
    found = {}
    for place, here in measured(changed[changed["multiple"] != 1], "since").groupby(at):
        effect = blocked_effect(by_seed(here, ["trained_at", *({SEED} & {*factors})], "since"))
        if len(here) == 1 and here["reference"].iloc[0] == here["trained_at"].iloc[0]:
            effect = replace(effect, low=here["change_low"].iloc[0], high=here["change_high"].iloc[0])
        found[place] = effect
    return found


def against_training(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Make a line for the change of each arm at each multiple of each training context, and averaged over these."""
    keys = reading_keys(factors)
    lines = []
    for _, rows in arms_of(readings(runs, lengths, factors), keys):
        contexts = sorted(rows["trained_at"].dropna().unique())
        parts = [(f"{context:,.0f}", rows[rows["trained_at"] == context]) for context in contexts]
        for trained_at, part in [*parts, ("average", rows)] if len(contexts) > 1 else parts:
            lines += [
                rows[keys].iloc[0].to_dict()
                | {"trained at": trained_at, "context": f"{multiple:g} ×", "change": effect_text(effect)}
                | {**evidence(effect), "": effect.verdict}
                for multiple, effect in changes(part, factors).items()
                if multiple > 1
            ]
    return without_plain_reading(pd.DataFrame(lines))


def losses_at_lengths(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Return the mean of each arm at each context length it read, in tokens: a row for each training context.

    Returns:
        Losses in nats per token if all readings of the study scored the same targets, otherwise bits per byte, without
        the readings for which they are not known.
    """
    measure = LOSS if have_equal_targets(lengths) else "bits_per_byte"
    keys = [*reading_keys(factors), "trained_at"]
    rows = by_levels(measured(readings(runs, lengths, factors), measure), keys)
    table = rows.pivot_table(measure, keys, "context_length", sort=False, dropna=False).sort_index(axis=1)
    table.columns = [f"{length:,.0f}" for length in table.columns]
    return without_plain_reading(table.reset_index()).rename(columns={"trained_at": "trained at (tokens)"})


def between_contexts(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], against: str | None = None
) -> pd.DataFrame:
    """Compare training contexts at every context length that several of them were read at, on the same targets.

    Args:
        runs: each arm at one learning rate.
        lengths: one study of those that `lengths` returns.
        factors: all that was varied but the rate.

    Returns:
        A line for each training context and length of reading; empty if the targets are not the same for all.
    """
    if CONTEXT not in factors or not have_equal_targets(lengths):
        return pd.DataFrame()
    lines = []
    for length, here in readings(runs, lengths, factors).groupby("context_length"):
        found = level_effects(here, [*factors, "scaling"], LOSS, against=against)
        lines += [
            {"all reading (tokens)": f"{length:,.0f}", "trained at": f"{each.level:,}", "against": f"{each.against:,}"}
            | {"effect": each.text, **evidence(each.effect), "left out": each.left_out, "": each.effect.verdict}
            for each in found
            if each.factor == CONTEXT
        ]
    return pd.DataFrame(lines)


def between_arms(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], against: str | None = None
) -> pd.DataFrame:
    """Compare arms with each other at every context length, as `effects` does on the validation loss.

    Args:
        runs: each arm at one learning rate.
        lengths: one study of those that `lengths` returns, in which the targets of each training context are known.
        factors: all that was varied but the rate.

    Returns:
        A line for each level and multiple of the training context, `context` first; empty if no pair was read.
    """
    tables = []
    for multiple, here in readings(runs, lengths, factors).groupby("multiple"):
        found = level_effects(here, [*factors, "scaling"], "loss", against=against)
        if arms := [each for each in found if each.factor not in (CONTEXT, "scaling")]:
            tables.append(effect_table(arms).assign(context=f"{multiple:g} ×"))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table[["context", *table.columns.drop("context")]]

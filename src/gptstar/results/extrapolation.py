"""Arms beyond the training context: each against itself there, and against the others, paired by seed."""

import math
from collections.abc import Hashable, Sequence

import pandas as pd

from gptstar.evaluation.statistics.effects import blocked_effect
from gptstar.results.factors import SEED, effect_table, evidence, level_effects
from gptstar.results.frames import AT_EDGE

CONTEXT = "data.context_length"


def against_training(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Find the change against the training context of each arm and multiple: paired within runs, over cells and seeds.

    `runs` and `lengths` are what the functions of these names in `frames` return.
    """
    arms = [each for each in factors if each not in (SEED, CONTEXT)]
    merged = lengths.merge(runs[["run", *arms, *([SEED] if SEED in runs else [])]], on="run")
    lines = []
    for name, group in merged.groupby([*arms, "rotary_scaling"], sort=False, dropna=False):
        at_training = group[group["multiple"] == 1].set_index("run")["loss"]
        group = group.assign(change=group["loss"] - group["run"].map(at_training)).dropna(subset=["change"])
        for multiple, changed in group[group["multiple"] > 1].groupby("multiple"):
            by_seed: dict[Hashable, dict[Hashable, float]] = {}
            for run in changed.to_dict("records"):
                by_seed.setdefault(run.get(SEED, 0), {})[run["trained_at"]] = run["change"]
            effect = blocked_effect(by_seed)
            lines.append(
                {
                    **dict(zip([*arms, "rotary_scaling"], name, strict=True)),
                    "context": f"{multiple:g} ×",
                    "change": f"{effect.value:+.4f}",
                    "95 % interval": "" if math.isnan(effect.low) else f"{effect.low:+.4f} to {effect.high:+.4f}",
                    **evidence(effect),
                    "": effect.verdict,
                }
            )
    return pd.DataFrame(lines)


def between_arms(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], against: str | None = None
) -> pd.DataFrame:
    """Compare arms with each other at every context length, as `effects` does on the validation loss.

    Args:
        runs: each arm at one learning rate.
        lengths: what `frames.lengths` returns, with the same targets for all runs.
        factors: all that was varied but the rate.

    Returns:
        A line for each level and multiple of the training context, `context` first; empty if no pair was read.
    """
    merged = lengths.merge(runs[["run", "began", *factors, *({AT_EDGE} & {*runs})]], on="run")
    tables = []
    for multiple, here in merged.groupby("multiple"):
        changes = level_effects(here, [*factors, "rotary_scaling"], "loss", against=against)
        if arms := [each for each in changes if each.factor not in (CONTEXT, "rotary_scaling")]:
            tables.append(effect_table(arms).assign(context=f"{multiple:g} ×"))
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table[["context", *table.columns.drop("context")]]

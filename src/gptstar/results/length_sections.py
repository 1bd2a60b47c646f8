"""The sections of a report on loss against context length."""

from collections.abc import Iterator, Sequence

import pandas as pd

from gptstar.results.arms import SEED, by_levels
from gptstar.results.extrapolation import (
    against_training,
    between_arms,
    between_contexts,
    reading_keys,
    readings,
    without_plain_reading,
)
from gptstar.results.figures import lengths_figure
from gptstar.results.length_answer import longest_changes, whether_it_holds
from gptstar.results.section import Section
from gptstar.results.tried import at_best_rate

AS_READ = {"sort": False, "dropna": False}


def length_sections(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], against: str | None, explained: str
) -> Iterator[Section]:
    """Describe each study: losses, whether they hold beyond the training context, and arms against each other.

    Args:
        explained: what is said of the intervals.
    """
    studies = list(lengths.groupby("study", sort=False)) if not lengths.empty else []
    for study, of_study in studies:
        which = f" ({study})" if len(studies) > 1 else ""
        yield from _study(runs, of_study, factors, which, explained)
        tuned, left = at_best_rate(runs[runs["state"] == "finished"], factors)
        if not (table := between_contexts(tuned, of_study, left, against)).empty:
            text = (
                "Changes of the loss in nats per token on the same targets: each training context against another, all "
                f"reading the same number of tokens. {explained}"
            )
            yield Section(f"Training contexts, all reading the same length{which}", text, table=table)
        known = "" not in set(of_study["targets"])
        if known and not (table := between_arms(tuned, of_study, left, against)).empty:
            text = f"Loss at each multiple of the training context. {_on_targets(of_study)} {explained}"
            yield Section(f"Arms at each length{which}", text, table=table)


def _on_targets(lengths: pd.DataFrame) -> str:
    """Say which runs of a study scored the same targets: those of one training context did, if targets are known."""
    targets = set(lengths["targets"])
    if "" in targets:
        return "It is not known whether the targets are the same for all runs."
    return f"The targets are the same for all runs{' of one training context' if len(targets) > 1 else ''}."


def _study(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], which: str, explained: str
) -> Iterator[Section]:
    keys = [*reading_keys(factors), "trained_at"]
    read = by_levels(readings(runs, lengths, factors), keys)
    of_seeds = read.groupby([*keys, "multiple", *({SEED} & {*factors})], **AS_READ)
    table = of_seeds["loss"].mean().groupby([*keys, "multiple"], **AS_READ).mean().unstack("multiple")
    table.columns = [f"{multiple:g} ×" for multiple in table.columns]
    text = (
        "The loss in nats per token by the context read, in multiples of the training context: means over seeds. "
        f"{_on_targets(lengths)} The training context is shaded, or ends at a dotted line where several "
        "share a panel. Bars of a loss go from the best seed to the worst; below are changes since the training "
        "context on the same targets, with 95 % intervals over seeds (of one run: over the text)."
    )
    figure, table = lengths_figure(runs, lengths, factors), without_plain_reading(table.reset_index())
    table = table.rename(columns={"trained_at": "trained at (tokens)"})
    yield Section(f"Beyond the training context{which}", text, table=table, picture=figure)
    against = against_training(runs, lengths, factors)
    if not against.empty:
        text = (
            "The change is the loss in nats per token at a multiple of the training context, less that at the training "
            f"context itself; the interval of one run is over the text. {explained}"
        )
        held = tuple(map(whether_it_holds, longest_changes(runs, lengths, factors)))
        yield Section(f"Does it hold?{which}", text, points=held, table=against)

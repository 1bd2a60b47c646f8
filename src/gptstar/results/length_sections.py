"""The sections of a report on loss against context length."""

from collections.abc import Iterator, Sequence

import pandas as pd

from gptstar.results.arms import SEED
from gptstar.results.extrapolation import against_training, between_arms, reading_keys, readings
from gptstar.results.figures import lengths_figure
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
        if "" not in set(of_study["targets"]):
            tuned, left = at_best_rate(runs[runs["state"] == "finished"], factors)
            if not (table := between_arms(tuned, of_study, left, against)).empty:
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
    of_seeds = readings(runs, lengths, factors).groupby([*keys, "multiple", *({SEED} & {*factors})], **AS_READ)
    table = of_seeds["loss"].mean().groupby([*keys, "multiple"], **AS_READ).mean().unstack("multiple")
    table.columns = [f"{multiple:g} ×" for multiple in table.columns]
    text = (
        "Loss by the context read, as multiples of the training context; nats per token, means over seeds. "
        f"{_on_targets(lengths)} The shade ends where training did. Bars of a loss go from the best seed to the worst; "
        "below are changes since the training context on the same targets, with 95 % intervals over seeds (of one run: "
        "over the text)."
    )
    figure = lengths_figure(runs, lengths, factors)
    yield Section(f"Beyond the training context{which}", text, table=table.reset_index(), picture=figure)
    against = against_training(runs, lengths, factors)
    if not against.empty:
        text = (
            "Loss at a multiple of the training context, less that at the training context itself; the interval of one "
            f"run is over the text. {explained}"
        )
        yield Section(f"Does it hold?{which}", text, table=against)

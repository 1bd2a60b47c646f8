"""The sections of a report on loss against context length."""

from collections.abc import Iterator, Sequence

import pandas as pd

from gptstar.results.extrapolation import CONTEXT, against_training, between_arms
from gptstar.results.factors import SEED, at_best_rate
from gptstar.results.figures import lengths_figure
from gptstar.results.section import Section


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
        if _same_targets(of_study):
            tuned, left = at_best_rate(runs[runs["state"] == "finished"], factors)
            if not (table := between_arms(tuned, of_study, left, against)).empty:
                text = f"Loss at each multiple of the training context, on the same targets. {explained}"
                yield Section(f"Arms at each length{which}", text, table=table)


def _same_targets(lengths: pd.DataFrame) -> bool:
    """Whether all runs scored the same targets, at every length or at each multiple."""
    study = lengths["study"].iloc[0]
    return "fixed_targets" in study and ("room" in study or lengths["trained_at"].nunique() == 1)


def _study(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], which: str, explained: str
) -> Iterator[Section]:
    arms = [each for each in factors if each not in (SEED, CONTEXT)]
    keys = [*arms, "rotary_scaling", "trained_at"]
    merged = lengths.merge(runs[["run", *arms, *([SEED] if SEED in runs else [])]], on="run")
    table = merged.groupby([*keys, "multiple"], sort=False, dropna=False)["loss"].mean().unstack("multiple")
    table.columns = [f"{multiple:g} ×" for multiple in table.columns]
    same = "The targets are the same for all runs. " if _same_targets(lengths) else "Targets differ between runs. "
    text = (
        f"Loss by the context read, as multiples of the training context; nats per token, means over seeds. {same}"
        "The shade ends where training did. Bars of a loss go from the best seed to the worst; below are changes since "
        "the training context on the same targets, with 95 % intervals over seeds (of one seed: over the text)."
    )
    figure = lengths_figure(runs, lengths, factors)
    yield Section(f"Beyond the training context{which}", text, table=table.reset_index(), picture=figure)
    against = against_training(runs, lengths, factors)
    if not against.empty:
        text = f"Loss at a multiple of the training context, less that at the training context itself. {explained}"
        yield Section(f"Does it hold?{which}", text, table=against)

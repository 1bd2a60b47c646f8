"""The values of a numeric factor that were tried, with the outcome of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from gptstar.results.arms import arms_of
from gptstar.results.factors import OUTCOME, RATE, SEED, levels_of

LEAST_LEVELS = 3
"""Values that a factor needs for a curve, unless it is the learning rate."""


@dataclass(frozen=True)
class Tried:
    """What an arm reached at each value of a factor.

    Attributes:
        values: by value of the factor, ascending: `mean`, `min`, `max` and `size` over seeds.
        best: the value with the lowest mean, of those with all seeds.
    """

    arm: str
    values: pd.DataFrame
    best: float

    @property
    def is_at_edge(self) -> bool:
        """Whether a value beyond those tried may be better."""
        return len(self.values) > 1 and self.best in (self.values.index.min(), self.values.index.max())


def values_tried(finished: pd.DataFrame, factor: str, factors: Sequence[str], outcome: str = OUTCOME) -> list[Tried]:
    """Find the outcome of every arm at every value of a numeric factor.

    Args:
        factors: all that was varied; arms differ in those that are neither the factor nor the seed.
    """
    validated = finished[finished[outcome].notna()]
    arms = [each for each in factors if each not in (factor, SEED)]
    tried = []
    for name, runs in arms_of(validated, arms):
        values = runs.groupby(factor)[outcome].agg(["mean", "min", "max", "size"]).sort_index()
        if not values.empty:
            complete = values[values["size"] == values["size"].max()]
            tried.append(Tried(name, values, complete["mean"].idxmin()))
    return tried


def numeric_factors(runs: pd.DataFrame, factors: Sequence[str]) -> list[str]:
    """Factors with a curve: numbers with at least three values; the learning rate with two."""
    return [factor for factor in factors if factor != SEED and _has_curve(levels_of(runs, factor), factor)]


def _has_curve(levels: Sequence[object], factor: str) -> bool:
    are_numbers = all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)
    return are_numbers and len(levels) >= (2 if factor == RATE else LEAST_LEVELS)

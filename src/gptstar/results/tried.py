"""The outcome at each tried value of a factor, and the best value."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pandas as pd

from gptstar.results.arms import RATE, arms_of, by_seed, levels_of, measured, outcome_of, without_seed
from gptstar.results.frames import AT_EDGE, varied


@dataclass(frozen=True)
class Tried:
    """The outcomes of an arm at each tried value of a factor.

    Attributes:
        runs: the runs of the arm.
        values: a frame by value of the factor, in order: `mean`, `min`, `max` and `size` over seeds (and cells);
            `is_complete` says that no other value has more seeds or other cells.
        arm: the name of the arm.
        levels: the levels of the arm, by factor.
    """

    runs: pd.DataFrame
    values: pd.DataFrame
    arm: str = "all runs"
    levels: Mapping[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: pd.DataFrame, factor: str, factors: Sequence[str], outcome: str) -> Self:
        """Average an outcome at each value of a factor over all other settings; values without an outcome are left out.

        Args:
            runs: the runs of the arm.
            factor: the factor.
            factors: all settings that vary between the runs, including the seed.
            outcome: the column of the outcome.
        """
        others = [each for each in factors if each != factor]
        lines, n_seeds = {}, {}
        for value in levels_of(runs, factor):
            seeds = by_seed(runs[runs[factor] == value], others, outcome).values()
            if reached := [each for cells in seeds for each in cells.values()]:
                lines[value] = (sum(reached) / len(reached), min(reached), max(reached), len(reached))
                n_seeds[value] = Counter(cell for cells in seeds for cell in cells)
        values = pd.DataFrame.from_dict(lines, orient="index", columns=["mean", "min", "max", "size"])
        fullest = max(n_seeds.values(), key=Counter.total, default=Counter())
        return cls(runs, values.assign(is_complete=[each == fullest for each in n_seeds.values()]))

    @property
    def complete(self) -> pd.Series:
        """The means of all values with the full number of seeds and cells, the lowest first."""
        return self.values.loc[self.values["is_complete"], "mean"].sort_values(kind="stable")

    @property
    def best(self) -> Any:
        """The complete value with the lowest mean."""
        return self.complete.index[0]

    @property
    def is_at_edge(self) -> bool:
        """Whether a value beyond those tried may be better."""
        return len(self.values) > 1 and self.best in (self.values.index.min(), self.values.index.max())


def values_tried(finished: pd.DataFrame, factor: str, factors: Sequence[str]) -> list[Tried]:
    """Return the outcome of every arm at every value of a factor; unless the factor is the learning rate, at its best.

    Arms differ in factors other than this one and the seed. The outcome is that of `outcome_of`.
    """
    outcome = outcome_of(finished)
    if factor != RATE:
        finished, factors = at_best_rate(finished, factors)
    validated = measured(finished, outcome)
    arms = [each for each in without_seed(factors) if each != factor]
    tried = []
    for name, runs in arms_of(validated, arms) if len(validated) else ():
        of_arm = replace(Tried.of(runs, factor, factors, outcome), arm=name, levels=runs[arms].iloc[0].to_dict())
        tried += [of_arm] if len(of_arm.values) else []
    return tried


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """Leave out the runs that chose a value for others (of `hydra/sweeper=tuned`), unless there are no others.

    Use it before `varied`: of the runs that are left, each arm has the value it chose, which follows from the arm and
    is not a factor. The settings of the optimizer therefore become the last columns, and the learning rate the last.

    Returns:
        The other runs. If arms chose learning rates, the column `AT_EDGE` says whether a run's rate is the lowest or
        the highest that its arm chose from. The frame itself if it has no such runs, or no others.
    """
    tuning = tuning_of(runs)
    if tuning.empty or len(tuning) == len(runs):
        return runs
    others = runs.drop(tuning.index).reset_index(drop=True)
    others = others[sorted(others.columns, key=lambda key: (key == RATE, str(key).startswith("optimizer.")))]
    if RATE not in (keys := without_seed(varied(tuning))):
        return others
    arms = [key for key in keys if key != RATE]
    tried = {name: set(rates) for name, rates in tuning.groupby(arms)[RATE]} if arms else {(): set(tuning[RATE])}
    names = others[arms].itertuples(index=False, name=None) if arms else [()] * len(others)
    of_runs = [tried.get(name, set()) for name in names]
    ends = [rates and rate in (min(rates), max(rates)) for rate, rates in zip(others[RATE], of_runs, strict=True)]
    return others.assign(**{AT_EDGE: [bool(each) for each in ends]})


def tuning_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that chose a value for others."""
    return runs[runs["is_tuning"].astype(bool)] if "is_tuning" in runs else runs.iloc[:0]


def at_best_rate(frame: pd.DataFrame, factors: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Keep only the finished runs at each arm's best learning rate, by the mean over seeds.

    A rate with fewer seeds than another rate of the arm is not chosen, because a run failed or is still missing.

    Returns:
        The remaining runs, with the column `AT_EDGE`, and the factors without the learning rate. Both are unchanged if
        no arm tried several rates, or if only the rate varies.
    """
    others = [each for each in factors if each != RATE]
    tried = values_tried(frame, RATE, factors) if RATE in factors and without_seed(others) else []
    if all(len(each.values) < 2 for each in tried):
        return frame, list(factors)
    best = [each.runs[each.runs[RATE] == each.best].assign(**{AT_EDGE: each.is_at_edge}) for each in tried]
    return pd.concat(best, ignore_index=True), others


def numeric_factors(runs: pd.DataFrame, factors: Sequence[str]) -> list[str]:
    """Return the factors to draw as curves: numbers with at least three values, or two for the learning rate."""
    numeric = []
    for factor in without_seed(factors):
        levels = levels_of(runs, factor)
        are_numbers = all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)
        numeric += [factor] if are_numbers and len(levels) >= (2 if factor == RATE else 3) else []
    return numeric

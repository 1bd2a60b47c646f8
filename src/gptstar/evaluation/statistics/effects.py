"""The effect of changing one setting: runs are paired within seed and cell, so that only seeds vary by chance."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

SEEDS, LEVEL = 5, 0.01
"""The least number of seeds of a significant effect, and the level that its p must be below."""


@dataclass(frozen=True)
class Effect:
    """A mean difference over seeds, with its 95 % interval.

    Attributes:
        low, high, p: the interval and the p of no effect; NaN for a single seed.
        n_cells: the number of combinations of other settings in which the two were compared; the same for all seeds.
        is_decided: whether both sides are known at their best. A side is not if its best learning rate is the lowest or
            the highest of those tried.
    """

    value: float
    low: float
    high: float
    p: float
    n_seeds: int
    n_cells: int
    is_decided: bool = True

    @property
    def is_significant(self) -> bool:
        """Whether the effect is decided, and has at least `SEEDS` seeds and a p below `LEVEL`."""
        return self.is_decided and self.n_seeds >= SEEDS and self.p < LEVEL

    @property
    def verdict(self) -> str:
        """The strength of the evidence in words, such as `significant` or `preliminary`."""
        if not self.is_decided:
            return "not decided: a best learning rate is at the end of its rates"
        if self.is_significant:
            return "significant"
        if not self.low <= 0 <= self.high and not math.isnan(self.p):
            return "preliminary"
        return "not told apart from chance" if self.n_seeds > 1 else "one seed: says nothing"


def blocked_effect(differences: Mapping[Hashable, Mapping[Hashable, float]]) -> Effect:
    """Estimate the mean of differences, given by seed and cell, with Student's t over seeds.

    If some differences are missing, use the largest set of seeds and cells without gaps. A seed decides initial weights
    and the order of data in every cell, so cells of one seed are not independent: they are averaged first.

    Raises:
        ValueError: there is no difference.
    """
    seeds, cells = _complete(differences)
    means = np.array([np.mean([differences[seed][cell] for cell in cells]) for seed in seeds])
    n, value, n_cells = len(means), float(means.mean()), len(cells)
    if n < 2:
        return Effect(value, math.nan, math.nan, math.nan, n, n_cells)
    error = float(means.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(2 * stats.t.sf(abs(value) / error, n - 1)) if error else float(value == 0)
    return Effect(value, value - half, value + half, p, n, n_cells)


def _complete(differences: Mapping[Hashable, Mapping[Hashable, float]]) -> tuple[list[Hashable], frozenset[Hashable]]:
    """Return the seeds and cells of the largest block without gaps; of equally large ones, that with the most seeds."""
    cells_of = {seed: frozenset(cells) for seed, cells in differences.items()}
    shared = {one & two for one in cells_of.values() for two in cells_of.values()} - {frozenset()}
    blocks = [([seed for seed, cells in cells_of.items() if block <= cells], block) for block in shared]
    if not blocks:
        raise ValueError("no pair of runs differs in this alone")
    return max(blocks, key=lambda block: (len(block[0]) * len(block[1]), len(block[0]), sorted(map(str, block[1]))))

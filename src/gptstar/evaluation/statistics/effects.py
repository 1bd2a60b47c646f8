"""What changing one thing does to runs: paired within seed and cell, so that only other seeds are left to chance."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

SEEDS, LEVEL = 5, 0.01
"""A significant effect takes so many seeds, and a smaller p. Anything less is preliminary."""


@dataclass(frozen=True)
class Effect:
    """A mean difference over seeds, with its 95 % interval.

    Attributes:
        low, high, p: NaN for a single seed.
        n_cells: in which the two were compared, other settings alike; the same for all seeds.
        is_decided: whether each side is known at its best, which one whose best learning rate is the lowest or highest
            of those tried is not.
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
        """Whether it is decided, with enough seeds and a small enough p."""
        return self.is_decided and self.n_seeds >= SEEDS and self.p < LEVEL

    @property
    def verdict(self) -> str:
        """The same in words."""
        if not self.is_decided:
            return "not decided: a best learning rate is at the end of its rates"
        if self.is_significant:
            return "significant"
        if not self.low <= 0 <= self.high and not math.isnan(self.p):
            return "preliminary"
        return "not told apart from chance" if self.n_seeds > 1 else "one seed: says nothing"


def blocked_effect(differences: Mapping[Hashable, Mapping[Hashable, float]]) -> Effect:
    """The mean of differences by seed and cell, by Student's t; of a design with holes, its largest part without.

    A seed decides initial weights and the order of data in every cell, so cells of one seed are not independent: they
    are averaged first, and the seeds' means are what varies.

    Raises:
        ValueError: there is no difference at all.
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
    """The seeds and cells of the largest block without holes; of blocks of one size, that with most seeds."""
    cells_of = {seed: frozenset(cells) for seed, cells in differences.items()}
    shared = {one & two for one in cells_of.values() for two in cells_of.values()} - {frozenset()}
    blocks = [([seed for seed, cells in cells_of.items() if block <= cells], block) for block in shared]
    if not blocks:
        raise ValueError("no pair of runs differs in this alone")
    return max(blocks, key=lambda block: (len(block[0]) * len(block[1]), len(block[0]), sorted(map(str, block[1]))))

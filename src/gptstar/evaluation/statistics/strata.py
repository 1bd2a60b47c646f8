"""Scores of several tasks as one: a weighted mean of ratios, whose items were drawn within each task."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gptstar.evaluation.statistics.intervals import cluster_numbers, join_clusters


@dataclass(frozen=True)
class Stratum:
    """The items of one task, and its weight in the mean.

    Attributes:
        numerators, denominators: `(item,)`: the task's score is the ratio of their sums.
        clusters: `(item,)`: items of this stratum with the same number are not independent.
        keys: `(item,)`: items of any stratum with the same key are not independent.
    """

    numerators: ArrayLike
    denominators: ArrayLike
    clusters: Sequence[int]
    keys: Sequence[Hashable]
    weight: float


def pooled(strata: Sequence[Stratum]) -> tuple[np.ndarray, list[int]] | None:
    """Return numbers whose mean is the weighted mean of the strata's ratios, and whose variance is that within strata.

    Strata are fixed: the items are a sample, the tasks are not. So each item counts by its deviation from
    its own task's ratio, linearised (Cochran 1977, Sampling Techniques, sections 5.3 and 6.3), and times
    sqrt(k / (k - 1)) for the k clusters of the task that the ratio was fitted to.

    Returns:
        Numbers `(item,)` and clusters `(item,)` of all strata; None if a stratum has a single cluster, from which no
        variance can be estimated.
    """
    total = sum(stratum.weight for stratum in strata)
    deviations: list[np.ndarray] = []
    clusters: list[int] = []
    keys: list[Hashable] = []
    value = 0.0
    for place, stratum in enumerate(strata):
        x, w = np.asarray(stratum.numerators, dtype=float), np.asarray(stratum.denominators, dtype=float)
        numbers = cluster_numbers(stratum.clusters, len(x))
        n_clusters = len(x) if numbers is None else int(numbers.max()) + 1
        if n_clusters < 2:
            return None
        share, ratio = stratum.weight / total, x.sum() / w.sum()
        value += share * ratio
        deviations.append(share * (x - ratio * w) / w.sum() * np.sqrt(n_clusters / (n_clusters - 1)))
        clusters += [place * 2**32 + number for number in stratum.clusters]
        keys += stratum.keys
    all_deviations = np.concatenate(deviations)
    return value + len(all_deviations) * all_deviations, join_clusters(clusters, keys)

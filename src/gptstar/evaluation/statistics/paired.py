"""Paired differences of two models on the same items, with tests. All differences are B minus A."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from gptstar.evaluation.statistics.intervals import RESAMPLES, Clusters, Ratio, cluster_numbers, studentised

EXACT_BELOW = 25
"""McNemar's test is exact if only one of the two models is right on fewer items than this."""

CONFIDENCE = 0.95
UPPER = (1 + CONFIDENCE) / 2


@dataclass(frozen=True)
class Paired:
    """The difference of two models on the same items.

    Attributes:
        difference: the figure of B minus that of A.
        low, high: the ends of its interval; NaN if there are too few items.
        p: the two-sided p of no difference.
        test: the test that gives p.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str


def paired_accuracy(a: ArrayLike, b: ArrayLike, clusters: Clusters = None) -> Paired:
    """Compare two accuracies on the same items, `(item,)`, each 0 or 1.

    The test is McNemar's (1947). It is exact if only one model is right on fewer than 25 items, otherwise asymptotic
    without continuity correction, as Fagerland, Lydersen & Laake (2013) recommend. The interval is Bonett & Price's
    (2012): Wald's, after adding one item that only A gets right and one that only B does.

    With clusters the test flips the signs of whole clusters' differences, and p is exact over all flips. If clusters
    have one item each, this is McNemar's exact test. The interval takes its variance from the clusters' sums, and is
    widened by the ratio of Student quantiles for clusters and for items. If clusters have one item each, it is Bonett &
    Price's.

    Raises:
        ValueError: an item is neither 0 nor 1, or the numbers of items differ.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or not np.isin((first, second), (0, 1)).all():
        raise ValueError(f"pairs of accuracies are of items that are 0 or 1: {first.shape}, {second.shape}")
    n = len(first)
    numbers = cluster_numbers(clusters, n)
    if n == 0 or (numbers is not None and numbers.max() == 0):
        return Paired(float((second - first).mean()) if n else math.nan, math.nan, math.nan, math.nan, "none")
    change = second - first
    if numbers is None:
        low, high = _interval(change, np.ones(n, dtype=int))
        p, test = _mcnemar(int(np.sum(change > 0)), int(np.sum(change < 0)))
    else:
        sums = np.bincount(numbers, change)
        low, high = _interval(sums, np.bincount(numbers))
        p, test = _flips(sums.astype(int)), "sign flips of clusters, exact"
    return Paired(float(change.mean()), low, high, p, test)


def _interval(changes: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Bonett & Price's 95 % interval, from each cluster's sum of differences and its number of items."""
    changes, sizes = np.append(changes, (1, -1)), np.append(sizes, (1, 1))
    n, n_clusters = sizes.sum(), len(sizes)
    mean = changes.sum() / n
    residuals = changes - sizes * mean
    unbiased = (n_clusters / (n_clusters - 1)) * ((n - 1) / n)  # 1 where clusters have one item
    error = math.sqrt(float(residuals @ residuals) * unbiased) / n
    few = stats.t.ppf(UPPER, n_clusters - 1) / stats.t.ppf(UPPER, n - 1)  # 1 likewise
    reach = stats.norm.ppf(UPPER) * few * error
    return max(-1.0, float(mean - reach)), min(1.0, float(mean + reach))


def _mcnemar(gained: int, lost: int) -> tuple[float, str]:
    changed = gained + lost
    if changed == 0:
        return 1.0, "McNemar, exact"
    if changed < EXACT_BELOW:
        return float(stats.binomtest(gained, changed).pvalue), "McNemar, exact"
    return float(stats.chi2.sf((gained - lost) ** 2 / changed, df=1)), "McNemar"


def _flips(changes: np.ndarray) -> float:
    """Return the share of all sign flips of integers whose sum is at least as far from 0 as the given sum.

    Of c integers of size s, the number of positive ones is Binomial(c, 1/2). So the distribution of the sum is a
    convolution of binomial ones, and no flips need to be drawn.
    """
    distribution = np.ones(1)
    sizes, counts = np.unique(np.abs(changes[changes != 0]), return_counts=True)
    for size, count in zip(sizes, counts, strict=True):
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.convolve(distribution, steps)
    total = len(distribution) // 2
    as_far = np.abs(np.arange(-total, total + 1)) >= abs(changes.sum())
    return min(1.0, float(distribution[as_far].sum()))


def paired_ratio(
    numerators_a: ArrayLike,
    numerators_b: ArrayLike,
    denominators: ArrayLike,
    clusters: Clusters = None,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> Paired:
    """Compare two ratios with the same denominator, such as log-likelihoods per word, by the paired bootstrap-t.

    Interval and p come from the same resamples: p is at most 0.05 exactly if the 95 % interval excludes 0, and never
    below 1 / (n_resamples + 1).

    Args:
        numerators_a, numerators_b: `(item,)`: the numerators of each model.
        denominators: `(item,)`: the common denominators, such as numbers of words; ones for a mean over items.
        clusters: the cluster of each item.
        seed: the seed of resampling.
        n_resamples: the number of resamples.

    Returns:
        The difference; interval and p are NaN with fewer than two documents. If all documents differ by the same ratio,
        the interval has zero width, and p is that of a sign test.

    Raises:
        ValueError: the numbers of numerators and denominators differ.
    """
    first, second = np.asarray(numerators_a, dtype=float), np.asarray(numerators_b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"numerators {first.shape} and {second.shape}")
    with np.errstate(invalid="ignore"):  # two that are infinite
        change = second - first
    ratio = Ratio(change, denominators, clusters)
    interval, p = studentised(ratio, confidence=CONFIDENCE, n_resamples=n_resamples, seed=seed)
    is_test = not interval.method.startswith("no")  # none, or no variation
    test = f"paired {interval.method}" if is_test else interval.method
    return Paired(ratio.value, interval.low, interval.high, p, test)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests (Holm 1979). NaN stays NaN and does not count as a test."""
    adjusted = np.asarray(p_values, dtype=float).copy()
    rising = np.argsort(adjusted)[: np.count_nonzero(~np.isnan(adjusted))]  # NaN is sorted last
    steps = adjusted[rising] * np.arange(len(rising), 0, -1)
    adjusted[rising] = np.minimum(1, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]

"""Confidence intervals: Wilson's for accuracies, the studentised bootstrap for ratios of sums over documents."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 9_999

LEAST_UNITS = 5
"""With fewer units, more than 1 resample in 100 consists of one unit only, and has no standard error."""

MOST_DEGENERATE = 0.005
"""The largest share of resamples without a standard error; above it, the bootstrap is not used."""

CHUNK_DRAWS = 2**16
"""Units drawn at once (or those of one resample, if more): their numbers and counts fit a CPU's cache."""

Clusters = Sequence[int] | np.ndarray | None
"""The cluster of each item, `(item,)`; items of one cluster are not independent. None if all items are."""


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        low, high: the ends of the interval; NaN if there are too few items.
        method: the method, such as `Wilson` or `bootstrap-t over documents`; `none` if there is no interval.
    """

    value: float
    low: float
    high: float
    method: str

    def transformed(self, function: Callable[[np.float64], float]) -> "Interval":
        """Return the interval of a monotonic function of the figure, such as exp of a mean loss."""
        with np.errstate(over="ignore"):
            value, *ends = (float(function(np.float64(number))) for number in (self.value, self.low, self.high))
        return replace(self, value=value, low=min(ends), high=max(ends))


def cluster_numbers(clusters: Clusters, n_items: int) -> np.ndarray | None:
    """Number clusters from 0, `(item,)`; None if every item is its own cluster.

    Raises:
        ValueError: there is not one cluster for each item.
    """
    if clusters is None:
        return None
    if len(clusters) != n_items:
        raise ValueError(f"{len(clusters)} clusters for {n_items} items")
    names, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    return numbers if len(names) < n_items else None


def join_clusters(clusters: Sequence[int], keys: Sequence[Hashable]) -> list[int]:
    """Merge clusters that have items with the same key, under the lowest of their numbers: `(item,)`."""
    joined: dict[int, int] = {}
    first: dict[Hashable, int] = {}

    def number_of(cluster: int) -> int:
        while cluster in joined:
            cluster = joined[cluster]
        return cluster

    for cluster, key in zip(clusters, keys, strict=True):
        low, high = sorted((number_of(first.setdefault(key, cluster)), number_of(cluster)))
        if low < high:
            joined[high] = low
    return [number_of(cluster) for cluster in clusters]


def accuracy_interval(correct: ArrayLike, clusters: Clusters = None, confidence: float = 0.95) -> Interval:
    """Compute Wilson's score interval of the mean of items `(item,)` that are 0 or 1 (Wilson 1927).

    With clusters, it uses the effective sample size: items divided by the design effect, and by the square of
    the ratio of Student quantiles for clusters and for items (Korn & Graubard 1998; Dean & Pagano 2015 find Wilson's at
    that size good). Clusters of one item each give the plain one exactly.

    The design effect may be below 1: a model that answers both twins of a pair alike gets exactly one of them right, so
    its accuracy varies less than that of coin flips. With a lower limit of 1, as Korn & Graubard have, the coverage is
    99 % or more there. Here the effect is pulled towards 1 by as many pseudo-clusters as Wilson's interval has
    pseudo-items, so that it is never 0. If all or no items are right, it can't be estimated; then each cluster counts
    as one item.

    Raises:
        ValueError: an item is neither 0 nor 1, or there is not one cluster for each item.
    """
    right = np.asarray(correct, dtype=float)
    if not np.isin(right, (0, 1)).all():
        raise ValueError("an accuracy is over items that are 0 or 1")
    n = len(right)
    numbers = cluster_numbers(clusters, n)
    value = float(right.mean()) if n else math.nan
    if n == 0 or (numbers is not None and numbers.max() == 0):
        return Interval(value, math.nan, math.nan, "none")
    size = float(n) if numbers is None else _effective_size(right, numbers, confidence)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = value + z**2 / (2 * size)
    reach = z * math.sqrt(value * (1 - value) / size + z**2 / (4 * size**2))
    low, high = (centre - reach) / (1 + z**2 / size), (centre + reach) / (1 + z**2 / size)
    low, high = max(0.0, min(low, value)), min(1.0, max(high, value))  # at 0 and 1 one end differs by rounding only
    return Interval(value, low, high, "Wilson" if numbers is None else "Wilson, clustered")


def _effective_size(right: np.ndarray, numbers: np.ndarray, confidence: float) -> float:
    """Return the number of independent items that carry as much information as these clustered ones."""
    n, n_clusters, share = len(right), int(numbers.max()) + 1, float(right.mean())
    if share in (0, 1):
        effect = n / n_clusters
    else:
        residuals = np.bincount(numbers, right - share)
        # Both variances without bias, so that clusters of one have a design effect of exactly 1.
        clustered = float(residuals @ residuals) * n_clusters / (n_clusters - 1) / n**2
        effect = clustered / (share * (1 - share) / (n - 1))
        pseudo = stats.norm.ppf((1 + confidence) / 2) ** 2
        effect = max(effect, (n_clusters * effect + pseudo) / (n_clusters + pseudo))
    upper = (1 + confidence) / 2
    return float(n / effect * (stats.t.ppf(upper, n - 1) / stats.t.ppf(upper, n_clusters - 1)) ** 2)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Clusters = None,
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """Compute the bootstrap-t interval of a ratio of sums over items, such as nats per word of documents.

    Documents (or clusters) are resampled, and the deviation of the ratio is divided by its standard error, so that
    skewed documents do not give too short an interval. It is symmetric (Hall 1988). With fewer than 5 documents it is
    Student's t instead. The order of items does not matter. Low and high are NaN for a single document; they equal the
    value if all documents have the same ratio.

    Raises:
        ValueError: the numbers of numerators, denominators and clusters differ.
    """
    ratio = Ratio(numerators, denominators, clusters)
    return studentised(ratio, confidence=confidence, n_resamples=n_resamples, seed=seed)[0]


class Ratio:
    """A ratio of two sums over independent units, which may be clusters of items.

    Attributes:
        residuals: `(unit,)`: the numerator less the ratio times the denominator, for linearisation.
        denominators: `(unit,)`: the denominators.
        unit: the name of the units: items, documents or clusters.
    """

    def __init__(self, numerators: ArrayLike, denominators: ArrayLike, clusters: Clusters = None) -> None:
        """Make a ratio from the numbers of each item.

        Raises:
            ValueError: the numbers of numerators and denominators differ.
        """
        x, w = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
        if x.shape != w.shape or x.ndim != 1:
            raise ValueError(f"numerators {x.shape}, denominators {w.shape}")
        self.unit = "items" if len(w) == 0 or (w == w[0]).all() else "documents"
        numbers = cluster_numbers(clusters, len(x))
        if numbers is not None:
            x, w, self.unit = np.bincount(numbers, x), np.bincount(numbers, w), "clusters"
        total = w.sum()
        sign = -1 if x.sum() * total < 0 else 1
        order = np.lexsort((w, sign * x))  # resampling is by place: neither items' order nor A's and B's may matter
        x, w = x[order], w[order]
        self.n_units, self.denominators = len(x), w
        self.value = float(x.sum() / total) if total != 0 else math.nan
        self.residuals = x - self.value * w if math.isfinite(self.value) else np.full(len(x), np.nan)
        if math.isfinite(self.value) and len(x) and np.abs(self.residuals).max() <= 1e-12 * np.abs(x).max():
            self.residuals = np.zeros(len(x))  # only rounding

    @property
    def standard_error(self) -> float:
        """The standard error by linearisation (Cochran 1977, Sampling Techniques, eq. 6.13)."""
        spread = float(self.residuals @ self.residuals) * self.n_units / (self.n_units - 1)
        return math.sqrt(spread) / abs(float(self.denominators.sum()))

    def resample(self, n_resamples: int, seed: int) -> np.ndarray:
        """Return the deviation of each resampled ratio from this one, in standard errors: `(resample,)`.

        It is infinite if a resample has no standard error. Units are drawn with replacement (Efron 1979). Studentising
        follows Efron & Tibshirani 1993, section 12.5. Memory does not grow with the number of resamples times units.
        """
        random = np.random.default_rng(seed)
        n, e, w = self.n_units, self.residuals, self.denominators
        moments = np.stack((e, w, e * e, e * w, w * w), axis=1)  # (unit, moment)
        at_once = max(1, CHUNK_DRAWS // n)
        deviations = np.empty(n_resamples)
        for start in range(0, n_resamples, at_once):
            rows = min(at_once, n_resamples - start)
            drawn = random.integers(0, n, size=(rows, n))
            drawn += n * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)
            sum_e, sum_w, sum_ee, sum_ew, sum_ww = (counts @ moments).T
            with np.errstate(divide="ignore", invalid="ignore"):
                change = sum_e / sum_w
                spread = sum_ee - 2 * change * sum_ew + change**2 * sum_ww
                spread = np.where(spread > 1e-12 * sum_ee, spread, 0.0)  # below is rounding: one unit, again and again
                deviations[start : start + rows] = sum_e / np.sqrt(spread * n / (n - 1))
        return np.where(np.isnan(deviations), np.inf, deviations)


def studentised(ratio: Ratio, *, confidence: float, n_resamples: int, seed: int) -> tuple[Interval, float]:
    """Return the interval of a ratio, and the two-sided p of 0, by the distribution of |estimate - truth| / error.

    The distribution is resampled, or Student's t with too few units to resample. The absolute value gives a symmetric
    interval, whose coverage is off by O(1 / n²), that of equal tails by O(1 / n) (Hall 1988, JRSS B 50:35).
    p is at most 1 - confidence just where the interval leaves out 0, and NaN where the units can't say. Where all units
    have the same ratio, the interval has no width, and p is that of a sign test.
    """
    n, value = ratio.n_units, ratio.value
    if n < 2 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan, "none"), math.nan
    error = ratio.standard_error
    if error == 0:
        p = 1.0 if value == 0 else max(1 / (n_resamples + 1), 0.5 ** (n - 1))
        return Interval(value, value, value, f"no variation over {ratio.unit}"), p
    deviation = abs(value) / error
    resamples = np.empty(0)
    if n >= LEAST_UNITS:
        resamples = np.sort(np.abs(ratio.resample(n_resamples, seed)))
    if len(resamples) and np.isinf(resamples).mean() <= MOST_DEGENERATE:
        # Of n resamples, the true value deviates less than the k-th with probability k / (n + 1).
        reach = np.quantile(resamples, confidence, method="weibull")
        p, law = (np.sum(resamples >= deviation) + 1) / (n_resamples + 1), "bootstrap-t"
    else:
        reach = stats.t.ppf((1 + confidence) / 2, n - 1)
        p, law = 2 * stats.t.sf(deviation, n - 1), "Student t"
    interval = Interval(value, float(value - reach * error), float(value + reach * error), f"{law} over {ratio.unit}")
    return interval, float(p)

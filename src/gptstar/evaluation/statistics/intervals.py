"""How sure a figure is: accuracies, and means of documents of different lengths."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from gptstar.evaluation.statistics.bootstrap import Ratio, Studentised, cluster_numbers

RESAMPLES = 9_999


@dataclass(frozen=True)
class Interval:
    """A figure and where its true value lies.

    Attributes:
        low, high: NaN where the items can't say.
        method: such as `Wilson` or `bootstrap-t over documents`; `none` where there is no interval.
    """

    value: float
    low: float
    high: float
    method: str


def accuracy_interval(
    correct: ArrayLike, clusters: Sequence[int] | np.ndarray | None = None, confidence: float = 0.95
) -> Interval:
    """Of a share of items: Wilson's score interval (Wilson 1927).

    With clusters it is Wilson's at the effective sample size: items divided by the design effect, and by the square of
    the ratio of Student quantiles for clusters and for items (Korn & Graubard 1998; Dean & Pagano 2015 find Wilson's at
    that size good). Clusters of one item each give the plain one exactly.

    The design effect may be below 1: a model that answers both twins of a pair alike gets one of them right whatever it
    knows, and so varies less than coins would. Cutting it at 1, as Korn & Graubard do, covers 99 % and more there. It
    is pulled towards 1 by as many pseudo-clusters as Wilson's interval has pseudo-items, so that it never is 0. Where
    all items are right, or none, they can't tell it: then each cluster counts as one item.

    Args:
        correct: `(item,)`, each 0 or 1.
        clusters: `(item,)`: items of the same number are not independent.

    Raises:
        ValueError: something that is neither 0 nor 1; not one cluster for each item.
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
    low, high = _wilson(value, size, confidence)
    # At 0 and 1 one end is the value itself, but for rounding.
    low, high = max(0.0, min(low, value)), min(1.0, max(high, value))
    return Interval(value, low, high, "Wilson" if numbers is None else "Wilson, clustered")


def _wilson(share: float, size: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share of so many items, which need not be a whole number."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = share + z**2 / (2 * size)
    reach = z * math.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return (centre - reach) / (1 + z**2 / size), (centre + reach) / (1 + z**2 / size)


def _effective_size(right: np.ndarray, numbers: np.ndarray, confidence: float) -> float:
    """Independent items that would tell as much as these in their clusters."""
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
    clusters: Sequence[int] | np.ndarray | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    transform: Callable[[Any], Any] | None = None,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """Of a sum over a sum, such as nats per word over documents: bootstrap-t.

    Documents (or clusters) are resampled, and the ratio's deviation is measured in its own standard error, so that
    skewed documents do not give too short an interval. Before any transform it is symmetric (Hall 1988). With fewer
    than 5 documents it is Student's t instead. The order of items does not matter.

    Args:
        numerators, denominators: `(item,)`.
        clusters: `(item,)`: items of the same number are not independent.
        transform: of value and ends, rising or falling throughout, such as exp of a mean loss for perplexity.

    Returns:
        Low and high are NaN for a single document, and the value where all documents have the same ratio.

    Raises:
        ValueError: not as many numerators, denominators and clusters.
    """
    ratio = Ratio.of(numerators, denominators, clusters)
    if ratio.n_units < 2 or not math.isfinite(ratio.value):
        low, high, method = math.nan, math.nan, "none"
    elif ratio.standard_error == 0:
        low, high, method = ratio.value, ratio.value, f"no variation over {ratio.unit}"
    else:
        law = Studentised(ratio, n_resamples=n_resamples, seed=seed)
        (low, high), method = law.interval(confidence), law.method
    if transform is None:
        return Interval(ratio.value, low, high, method)
    with np.errstate(over="ignore"):
        value, low, high = (float(transform(np.float64(number))) for number in (ratio.value, low, high))
    return Interval(value, min(low, high), max(low, high), method)


def mean_interval(
    values: ArrayLike,
    clusters: Sequence[int] | np.ndarray | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = RESAMPLES,
) -> Interval:
    """Of a mean of numbers that are not just 0 and 1: `ratio_interval` over the number of items."""
    numbers = np.asarray(values, dtype=float)
    return ratio_interval(numbers, np.ones_like(numbers), clusters, confidence, seed, n_resamples=n_resamples)

"""A ratio of sums over independent units, and how it would spread: the studentised bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEAST_UNITS = 5
"""Below this, more than 1 resample in 100 is of one unit alone, and has no standard error."""

MOST_DEGENERATE = 0.005
"""Share of resamples without a standard error up to which the others are believed."""

CHUNK_DRAWS = 2**16
"""Units drawn at once (or those of one resample, if more): their numbers and counts fit a CPU's cache."""


def cluster_numbers(clusters: Sequence[int] | np.ndarray | None, n_items: int) -> np.ndarray | None:
    """Clusters numbered from 0, `(item,)`; None where every item is a cluster of its own.

    Raises:
        ValueError: not one for each item.
    """
    if clusters is None:
        return None
    if len(clusters) != n_items:
        raise ValueError(f"{len(clusters)} clusters for {n_items} items")
    names, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    return numbers if len(names) < n_items else None


@dataclass(frozen=True)
class Ratio:
    """Sum of numerators over sum of denominators; independent units, which may be clusters of items.

    Attributes:
        residuals: `(unit,)`: numerator less the ratio times the denominator, by which the ratio is linearised.
        denominators: `(unit,)`.
        unit: what the units are called: items, documents, clusters.
    """

    value: float
    residuals: np.ndarray
    denominators: np.ndarray
    unit: str

    @classmethod
    def of(
        cls, numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[int] | np.ndarray | None = None
    ) -> "Ratio":
        """From the numbers of each item.

        Raises:
            ValueError: not as many of the one as of the other.
        """
        x, w = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
        if x.shape != w.shape or x.ndim != 1:
            raise ValueError(f"numerators {x.shape}, denominators {w.shape}")
        unit = "items" if len(w) == 0 or (w == w[0]).all() else "documents"
        numbers = cluster_numbers(clusters, len(x))
        if numbers is not None:
            x, w, unit = np.bincount(numbers, x), np.bincount(numbers, w), "clusters"
        total = w.sum()
        sign = -1 if x.sum() * total < 0 else 1
        order = np.lexsort((w, sign * x))  # resampling is by place: neither items' order nor A's and B's may matter
        x, w = x[order], w[order]
        value = float(x.sum() / total) if total != 0 else math.nan
        residuals = x - value * w if math.isfinite(value) else np.full(len(x), np.nan)
        if math.isfinite(value) and len(x) and np.abs(residuals).max() <= 1e-12 * np.abs(x).max():
            residuals = np.zeros(len(x))  # only rounding
        return cls(value, residuals, w, unit)

    @property
    def n_units(self) -> int:
        """Independent documents, items or clusters."""
        return len(self.residuals)

    @property
    def standard_error(self) -> float:
        """By linearisation (Cochran 1977, Sampling Techniques, eq. 6.13); NaN for less than two units."""
        if self.n_units < 2:
            return math.nan
        spread = float(self.residuals @ self.residuals) * self.n_units / (self.n_units - 1)
        return math.sqrt(spread) / abs(float(self.denominators.sum()))

    def resample(self, n_resamples: int, seed: int) -> np.ndarray:
        """Deviations of resampled ratios from this one, each in its own standard errors: `(resample,)`.

        Infinite where a resample has no standard error. Units are drawn with replacement (Efron 1979); studentised as
        in Efron & Tibshirani 1993, section 12.5. Memory does not grow with the number of resamples times units.
        """
        random = np.random.default_rng(seed)
        n, e, w = self.n_units, self.residuals, self.denominators
        moments = np.stack((e, w, e * e, e * w, w * w), axis=1)  # (unit, moment)
        at_once = max(1, CHUNK_DRAWS // n)
        found = np.empty(n_resamples)
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
                deviations = sum_e / np.sqrt(spread * n / (n - 1))
            found[start : start + rows] = np.where(np.isnan(deviations), np.inf, deviations)
        return found


class Studentised:
    """The law of |estimate - truth| / standard error, for a ratio: interval and p come from the same one.

    Resampled, or Student's t where there are too few units to resample. Its absolute value is taken as the coverage of
    such symmetric intervals is off by O(1 / n²), that of equal tails by O(1 / n) (Hall 1988, JRSS B 50:35).

    Attributes:
        resamples: without sign, sorted; empty where the law is Student's.
        method: what to call it.
    """

    def __init__(self, ratio: Ratio, *, n_resamples: int, seed: int) -> None:
        if ratio.n_units < 2 or ratio.standard_error == 0:
            raise ValueError(f"{ratio.n_units} units, standard error {ratio.standard_error}")
        self.ratio = ratio
        self.resamples = np.empty(0)
        if ratio.n_units >= LEAST_UNITS:
            found = np.sort(np.abs(ratio.resample(n_resamples, seed)))
            if np.isinf(found).mean() <= MOST_DEGENERATE:
                self.resamples = found
        self.method = f"{'bootstrap-t' if len(self.resamples) else 'Student t'} over {ratio.unit}"

    def interval(self, confidence: float) -> tuple[float, float]:
        """Low and high, as far from the ratio the one as the other."""
        if len(self.resamples):
            # Of n resamples, the true value deviates less than the k-th with probability k / (n + 1).
            reach = np.quantile(self.resamples, confidence, method="weibull")
        else:
            reach = stats.t.ppf((1 + confidence) / 2, self.ratio.n_units - 1)
        error = self.ratio.standard_error
        return float(self.ratio.value - reach * error), float(self.ratio.value + reach * error)

    def p(self) -> float:
        """Of the ratio being 0, two-sided: at most 1 - confidence just where the interval leaves out 0."""
        deviation = abs(self.ratio.value) / self.ratio.standard_error
        if not len(self.resamples):
            return float(2 * stats.t.sf(deviation, self.ratio.n_units - 1))
        return float((np.sum(self.resamples >= deviation) + 1) / (len(self.resamples) + 1))

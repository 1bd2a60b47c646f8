"""Intervals of a mean over seeds crossed with units of text, which treat both as random.

Every seed's model reads the same units, so a difference z of seed s on unit u varies with the seed, with the unit, and
with both together. An interval over one of the two alone leaves out the other: this is the "language-as-fixed-effect
fallacy" (Clark 1973, Journal of Verbal Learning and Verbal Behavior 12:335), whose quasi-F and min F' take both as
random; Baayen, Davidson & Bates (2008, Journal of Memory and Language 59:390) do so by mixed models. In a table without
holes the variance of the mean follows from three mean squares,

    (MS_seed + MS_unit - MS_rest) / (S · U),

and its degrees of freedom from Satterthwaite (1946, Biometrics Bulletin 2:110). By chance this may be less than
the variance of one source alone; then the larger of the two is taken, with its own degrees of freedom.

Units of unequal weights w tell less of their variance than as many equal ones, and a large unit pulls the mean towards
itself. So a unit's deviation is divided by 1 - w / Σw (the jackknife's correction for leverage), and in place of U the
degrees of freedom have Kish's effective number (Σw)² / Σw² (Kish 1965, Survey Sampling). Both change nothing for equal
units.

Measured coverage of the 95 % interval for normal effects is in docs/statistics.md.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from gptstar.evaluation.statistics.intervals import RESAMPLES, Ratio, studentised
from gptstar.evaluation.statistics.paired import CONFIDENCE, Paired

Over = Literal["seeds and units", "seeds", "units", "nothing"]


@dataclass(frozen=True)
class Crossed:
    """A mean with its confidence interval.

    Attributes:
        value: the mean over seeds of a ratio of sums over units.
        low, high, p: the interval, and the two-sided p of a mean of 0; NaN with only one seed and one unit.
        over: what the interval is over; `units` for a single seed, whose interval says nothing about other seeds.
        freedom: the degrees of freedom; NaN where the interval is not Student's t.
        largest: the largest unit's share of all weights.
    """

    value: float
    low: float
    high: float
    p: float
    n_seeds: int
    n_units: int
    over: Over
    freedom: float = math.nan
    largest: float = math.nan

    @property
    def paired(self) -> Paired:
        """This mean as a `Paired`."""
        return Paired(self.value, self.low, self.high, self.p, f"Student t over {self.over}")


def crossed_ratio(before: ArrayLike, after: ArrayLike, weights: ArrayLike, confidence: float = CONFIDENCE) -> Crossed:
    """Estimate the mean over seeds of a weighted difference over units, by crossed random effects.

    Args:
        before, after: `(seed, unit)`: the sums over each unit, such as of nats.
        weights: `(unit,)`: the denominators, such as numbers of targets; the same for all seeds.
        confidence: the confidence of the interval.

    Returns:
        For several seeds Student's t with both sources of variance, of differences linearised as ratios; for a single
        seed the bootstrap-t over units, as `paired_ratio` gives it.

    Raises:
        ValueError: the shapes don't fit, or there is no seed or no unit.
    """
    first, second, weight = (np.asarray(each, dtype=float) for each in (before, after, weights))
    if first.shape != second.shape or first.ndim != 2 or weight.shape != first.shape[1:] or not first.size:
        raise ValueError(f"before {first.shape}, after {second.shape}, weights {weight.shape}")
    n_seeds, n_units = first.shape
    largest = float(weight.max() / weight.sum())
    with np.errstate(invalid="ignore"):  # two that are infinite
        differences = second - first
        value = float(differences.sum() / (n_seeds * weight.sum()))
    if n_seeds == 1:
        ratio = Ratio(differences[0], weight)
        found, p = studentised(ratio, confidence=confidence, n_resamples=RESAMPLES, seed=0)
        over: Over = "units" if n_units > 1 else "nothing"
        return Crossed(found.value, found.low, found.high, p, n_seeds, n_units, over, largest=largest)
    if not math.isfinite(value):
        return Crossed(value, math.nan, math.nan, math.nan, n_seeds, n_units, "nothing", largest=largest)
    linear = value + (differences - value * weight) / weight.mean()  # its mean over units is the seed's ratio
    variance, freedom = _variance_of_mean(linear, weight / weight.sum())
    over = "seeds and units" if n_units > 1 else "seeds"
    if variance <= (1e-12 * np.abs(linear).max()) ** 2:  # only rounding
        p = 1.0 if value == 0 else 0.5 ** (n_seeds - 1)  # a sign test's
        return Crossed(value, value, value, p, n_seeds, n_units, over, largest=largest)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Crossed(value, value - reach, value + reach, p, n_seeds, n_units, over, freedom, largest)


def _variance_of_mean(values: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean of `(seed, unit)`, for two seeds or more, and its degrees of freedom.

    `shares`, `(unit,)`, are those of the units in all weights.
    """
    n_seeds, n_units = values.shape
    mean, of_seeds, of_units = values.mean(), values.mean(axis=1), values.mean(axis=0)
    by_seed = n_units * float(((of_seeds - mean) ** 2).sum()) / (n_seeds - 1)
    if n_units == 1:
        return by_seed / n_seeds, n_seeds - 1
    pulled = np.maximum(1 - shares, 1e-9) / (1 - 1 / n_units)  # 1 for equal units
    by_unit = n_seeds * float((((of_units - mean) / pulled) ** 2).sum()) / (n_units - 1)
    rest = values - of_seeds[:, None] - of_units + mean
    of_unit = float(1 / (shares**2).sum()) - 1
    freedoms = n_seeds - 1, of_unit, (n_seeds - 1) * of_unit
    by_both = float((rest**2).sum()) / ((n_seeds - 1) * (n_units - 1))
    if min(by_seed, by_unit) <= by_both:  # less than the larger alone
        larger, freedom = max((by_seed, freedoms[0]), (by_unit, freedoms[1]))
        return larger / values.size, freedom
    total = by_seed + by_unit - by_both
    squares = sum(square**2 / freedom for square, freedom in zip((by_seed, by_unit, by_both), freedoms, strict=True))
    return total / values.size, total**2 / squares

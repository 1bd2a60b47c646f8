"""From what was measured to what is said: ratios of paired rounds, shares of the limit, with intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import quantile_test

from gptstar.evaluation.length.reading import growth
from speed.comparison import Claim, Comparison
from speed.engine import Measured, Outcome

COVERAGE = 0.95


@dataclass(frozen=True)
class Figure:
    """A median and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})" if self.high > self.low else f"{self.value:.2f}"


def median(samples: Sequence[float]) -> Figure:
    """The median, and the interval between two order statistics that holds the true one with 95 %, whatever the noise.

    Of fewer than 6 rounds no such interval exists: then it is their range, which of 5 holds it with 94 %, of 3 with
    75 %.

    Source: the sign test's interval; Conover, "Practical Nonparametric Statistics", 1999, section 3.2.
    """
    interval = quantile_test(samples, p=0.5).confidence_interval(COVERAGE)
    low, high = (min(samples), max(samples)) if math.isnan(interval.low) else interval
    return Figure(statistics.median(samples), float(low), float(high))


def speeds(measured: Measured) -> list[float]:
    """Tokens a second of each round."""
    return [measured.about["tokens"] / seconds for seconds in measured.seconds]


def paired(of: Measured, over: Measured) -> Figure | None:
    """Tokens a second of one over the other's, each round against its own; None where one has no figures."""
    ratios = [a / b for a, b in zip(speeds(of), speeds(over), strict=False)]
    return median(ratios) if ratios else None


def share(outcome: Outcome, comparison: Comparison, measured: Measured) -> Figure | None:
    """The share of the limit, which is measured before and after each round."""
    bound = comparison.limit == "read_bandwidth"
    used = measured.about.get("weight_bytes" if bound else "flops")
    if not used:
        return None
    limits = [math.sqrt(a * b) for a, b in zip(outcome.limit[:-1], outcome.limit[1:], strict=True)]
    units = [1 / seconds for seconds in measured.seconds] if bound else speeds(measured)
    shares = [used * each / limit for each, limit in zip(units, limits, strict=False)]
    return median(shares) if shares else None


def mfu(outcome: Outcome, measured: Measured) -> Figure | None:
    """Model FLOPs utilisation: the share of a GPU's bfloat16 rate by its data sheet."""
    flops = measured.about.get("flops")
    if not (flops and outcome.data_sheet and measured.seconds):
        return None
    return median([flops * speed / outcome.data_sheet for speed in speeds(measured)])


def powers(outcome: Outcome, comparison: Comparison, series: str) -> tuple[float, float] | None:
    """The powers of the length by which a series' CPU time, and the memory it takes to read, grow.

    None of a series that failed at any length: what fitted would be the cheap part of it.
    """
    found = [
        outcome.entries[each.name]
        for each in comparison.entries
        if each.series == series and each.name in outcome.entries
    ]
    if len(found) < 2 or not all(each.seconds and each.failure is None for each in found):
        return None
    lengths = [int(each.about["tokens"]) for each in found]
    time = growth(lengths, [statistics.median(each.cpu_seconds) for each in found], least=2)
    return time, growth(lengths, [each.peak - each.about["held"] for each in found], least=2)


def figure(claim: Claim, outcome: Outcome, comparison: Comparison) -> Figure | None:
    """What a claim comes to, or None where it can't be said."""
    if claim.quantity == "growth":
        grown = powers(outcome, comparison, claim.of)
        return None if grown is None or math.isnan(grown[1]) else _single(grown[1])
    of, over = outcome.entries.get(claim.of), outcome.entries.get(claim.over or claim.of)
    if of is None or over is None or not (of.seconds and over.seconds):
        return None
    match claim.quantity:
        case "share":
            return share(outcome, comparison, of)
        case "mfu":
            return mfu(outcome, of)
        case "memory":
            return _single(of.peak / over.peak)
        case "peak":
            return _single(of.peak / 1e9)
        case "first":
            return _single(of.about["first_step"]) if "first_step" in of.about else None
        case "speed":
            return paired(of, over)
    return paired(over, of)


def _single(value: float) -> Figure:
    """A figure of one measurement."""
    return Figure(value, value, value)


def reached(claim: Claim, value: float) -> str:
    """`aim`, `floor` or `below`; nothing where the claim is only stated."""
    if claim.floor is None:
        return ""
    sign = -1 if claim.less_is_better else 1
    for name in ("aim", "floor"):
        bound = getattr(claim, name)
        if bound is not None and sign * value >= sign * bound:
            return name
    return "missed"

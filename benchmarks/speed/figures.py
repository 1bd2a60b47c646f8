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
    """Of the limit: of what the maker says of a GPU, else of what was measured before and after each round."""
    bound = comparison.limit == "read_bandwidth"
    used = measured.about.get("weight_bytes" if bound else "flops")
    if not used:
        return None
    by_maker = outcome.data_sheet if comparison.limit == "gemm_bf16" else None
    limits = [by_maker or math.sqrt(a * b) for a, b in zip(outcome.limit[:-1], outcome.limit[1:], strict=True)]
    units = [1 / seconds for seconds in measured.seconds] if bound else speeds(measured)
    shares = [used * each / limit for each, limit in zip(units, limits, strict=False)]
    return median(shares) if shares else None


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
    time = growth(lengths, [statistics.median(each.cpu_seconds) for each in found])
    return time, growth(lengths, [each.peak - each.about["held"] for each in found])


def figure(claim: Claim, outcome: Outcome, comparison: Comparison) -> Figure | None:
    """What a claim comes to, or None where it can't be said."""
    if claim.quantity == "growth":
        found = powers(outcome, comparison, claim.of)
        return None if found is None or math.isnan(found[1]) else Figure(found[1], found[1], found[1])
    of, over = outcome.entries.get(claim.of), outcome.entries.get(claim.over or claim.of)
    if of is None or over is None or not (of.seconds and over.seconds):
        return None
    if claim.quantity == "share":
        return share(outcome, comparison, of)
    if claim.quantity == "memory":
        ratio = of.peak / over.peak
        return Figure(ratio, ratio, ratio)
    return paired(of, over) if claim.quantity == "speed" else paired(over, of)


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

"""Intervals: published values, and how often they hold the true value when items are drawn again and again."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import stats

from gptstar.evaluation.statistics.intervals import Interval, accuracy_interval, ratio_interval

IN_BAND = (0.93, 0.97)
"""Coverage asked of 95 % intervals."""


def mean_interval(values: ArrayLike, clusters: ArrayLike | None = None, **choices: Any) -> Interval:
    """A mean of numbers that are not just 0 and 1."""
    return ratio_interval(values, np.ones(np.shape(values)), clusters, **choices)


def covered(draw: Callable[[int], Interval], truth: float, n: int) -> float:
    """Share of n intervals that hold the truth. With n = 3,000 its standard error is 0.004."""
    intervals = [draw(number) for number in range(n)]
    return float(np.mean([each.low <= truth <= each.high for each in intervals]))


def twins(random: np.random.Generator, n_pairs: int, share: float, correlation: float) -> np.ndarray:
    """Right or wrong of pairs of items, `(2 * n_pairs,)`, with a correlation within pairs."""
    both = share**2 + correlation * share * (1 - share)
    either = share - both  # this one and not its twin
    drawn = random.choice(4, size=n_pairs, p=[both, either, either, 1 - both - 2 * either])
    return np.stack([drawn <= 1, (drawn == 0) | (drawn == 2)], axis=1).ravel().astype(float)


def wikitext(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss and words of documents: lengths as WikiText-2's test set has them; longer ones read more easily."""
    z = random.normal(size=n)
    words = np.ceil(np.exp(7.94 + 0.67 * z))
    return (3.4 - 0.15 * z + 0.25 * random.gamma(2, 1, size=n)) * words, words


WIKITEXT_LOSS = 3.4 - 0.15 * 0.67 + 0.5  # E[z · words] / E[words] is the spread of the log-length


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_published(right: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
    found = accuracy_interval(np.arange(n) < right)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert (found.value, found.method) == (right / n, "Wilson")
    mirrored = accuracy_interval(np.arange(n) >= right)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize(
    ("right", "n", "confidence", "low", "high"),
    [(81, 263, 0.95, 0.2552885198782742, 0.3662095769828), (0, 20, 0.99, 0.0, 0.24910540109875348)],
)
def test_wilson_is_statsmodels(right: int, n: int, confidence: float, low: float, high: float) -> None:
    """By `proportion_confint(right, n, 1 - confidence, method="wilson")` of statsmodels 0.15.0."""
    found = accuracy_interval(np.arange(n) < right, confidence=confidence)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.999]))
def test_wilson_ends_where_the_score_test_rejects(n: int, share: float, confidence: float) -> None:
    found = accuracy_interval(np.arange(n) < round(share * n), confidence=confidence)
    z = stats.norm.ppf((1 + confidence) / 2)
    for end in (found.low, found.high):
        if 0 < end < 1:
            assert (found.value - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, rel=1e-9)


@pytest.mark.parametrize("n", [23, 101, 760])
def test_wilson_covers_95_percent_of_all_accuracies(n: int) -> None:
    """Not simulated: the binomial distribution is known. At a single accuracy coverage jumps up and down with n."""
    intervals = [accuracy_interval(np.arange(n) < right) for right in range(n + 1)]
    shares = np.linspace(0.05, 0.95, 501)
    holds = np.asarray([[each.low <= share <= each.high for each in intervals] for share in shares])
    coverage = (stats.binom.pmf(np.arange(n + 1), n, shares[:, None]) * holds).sum(axis=1)
    assert 0.945 <= coverage.mean() <= 0.96
    assert coverage.min() >= 0.91


@pytest.mark.slow
@pytest.mark.parametrize(("share", "correlation"), [(0.5, -0.6), (0.57, 0.0), (0.6, 0.4), (0.8, 0.9)])
@pytest.mark.parametrize("n_pairs", [41, 380])
def test_wilson_covers_with_twins(n_pairs: int, share: float, correlation: float) -> None:
    """Winogrande's file here has 760 items, nearly all of them twins."""
    random = np.random.default_rng(11)
    clusters = np.append(np.repeat(np.arange(n_pairs), 2), -1)

    def draw(_: int) -> Interval:
        return accuracy_interval(
            np.append(twins(random, n_pairs, share, correlation), random.random() < share), clusters
        )

    low, high = IN_BAND if n_pairs > 100 else (IN_BAND[0], 0.985)  # few items: counts are too coarse for 95 %
    assert low <= covered(draw, share, 2000 if n_pairs > 100 else 1000) <= high


def test_twins_need_clusters() -> None:
    """Without them the interval is too short for alike twins, and too long for a model that can't tell twins apart."""
    random = np.random.default_rng(12)
    alike = covered(lambda _: accuracy_interval(twins(random, 380, 0.6, 0.9)), 0.6, 1000)
    opposite = covered(lambda _: accuracy_interval(twins(random, 380, 0.5, -0.6)), 0.5, 1000)
    assert alike < 0.88
    assert opposite > 0.99


def test_a_model_that_never_tells_twins_apart_is_not_certain() -> None:
    clusters = np.repeat(np.arange(31), 2)
    found = accuracy_interval(np.tile([0, 1], 31), clusters)
    plain = accuracy_interval(np.tile([0, 1], 31))
    assert found.value == 0.5
    assert 0.1 < (found.high - found.low) / (plain.high - plain.low) < 0.5


@pytest.mark.parametrize("right", [0, 29, 53])
def test_doubled_items_tell_nothing_more(right: int) -> None:
    once = accuracy_interval(np.arange(53) < right)
    twice = accuracy_interval(np.repeat(np.arange(53) < right, 2), np.repeat(np.arange(53), 2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.006)
    values = np.random.default_rng(0).gamma(1.0, 3.0, 53)
    once = mean_interval(values)
    twice = mean_interval(np.repeat(values, 2), np.repeat(np.arange(53), 2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), rel=1e-9)
    assert (once.method, twice.method) == ("bootstrap-t over items", "bootstrap-t over clusters")


def test_clusters_of_one_are_no_clusters() -> None:
    right = np.arange(97) % 3 == 0
    assert accuracy_interval(right, np.arange(97)[::-1]) == accuracy_interval(right)
    values = np.random.default_rng(1).normal(size=97)
    assert mean_interval(values, np.arange(97)[::-1]) == mean_interval(values)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_order_does_not_matter(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 40))
    right = np.asarray(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    words = np.asarray(data.draw(st.lists(st.integers(1, 500), min_size=n, max_size=n)))
    clusters = np.asarray(data.draw(st.lists(st.integers(0, n), min_size=n, max_size=n)))
    order = np.asarray(data.draw(st.permutations(range(n))))
    there = accuracy_interval(right, clusters)
    back = accuracy_interval(right[order], clusters[order])
    assert (back.low, back.high) == pytest.approx((there.low, there.high), rel=1e-9, nan_ok=True)
    assert math.isnan(there.low) or 0 <= there.low <= there.value <= there.high <= 1
    loss = words * (1 + right)  # whole numbers: their sums are exact in any order
    there = ratio_interval(loss, words, clusters, n_resamples=99)
    back = ratio_interval(loss[order], words[order], clusters[order], n_resamples=99)
    assert (back.low, back.high, back.method) == pytest.approx((there.low, there.high, there.method), nan_ok=True)


@pytest.mark.slow
def test_perplexity_covers_over_60_skewed_documents() -> None:
    random = np.random.default_rng(21)
    missed = []

    def draw(seed: int) -> Interval:
        loss, words = wikitext(random, 60)
        found = ratio_interval(loss, words, n_resamples=999, seed=seed).transformed(np.exp)
        missed.append((math.exp(WIKITEXT_LOSS) < found.low, math.exp(WIKITEXT_LOSS) > found.high))
        return found

    assert IN_BAND[0] <= covered(draw, math.exp(WIKITEXT_LOSS), 3000) <= IN_BAND[1]
    assert np.all(np.mean(missed, axis=0) < 0.04)  # not all on one side


def test_perplexity_covers_over_lambada() -> None:
    """One number an item, most near 0 and some large."""
    random = np.random.default_rng(22)

    def draw(seed: int) -> Interval:
        return mean_interval(random.gamma(0.6, 5.0, 503), n_resamples=299, seed=seed)

    assert IN_BAND[0] <= covered(draw, 3.0, 1000) <= IN_BAND[1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 60])
def test_perplexity_covers_with_the_resamples_of_a_real_evaluation(n: int) -> None:
    """And where BCa and the percentile do not, on the same documents."""
    random = np.random.default_rng(23)
    ours, others = [], []
    for seed in range(3000):
        loss, words = wikitext(random, n)
        found = ratio_interval(loss, words, seed=seed)
        ours.append(found.low <= WIKITEXT_LOSS <= found.high)
        if seed < 1500:
            resampled = (loss, words), lambda loss, words, axis: loss.sum(axis) / words.sum(axis)
            for method in ("BCa", "percentile"):
                law = stats.bootstrap(
                    *resampled, paired=True, n_resamples=999, method=method, rng=seed, vectorized=True
                )
                low, high = law.confidence_interval
                others.append((method, low <= WIKITEXT_LOSS <= high))
    assert IN_BAND[0] <= np.mean(ours) <= IN_BAND[1]
    for method in ("BCa", "percentile"):
        assert np.mean([holds for name, holds in others if name == method]) < np.mean(ours) - 0.005


def test_clustered_means_cover() -> None:
    """Documents in clusters that share a level, of sizes from 1 to 6."""
    random = np.random.default_rng(24)
    sizes = np.resize([1, 2, 6], 71)
    clusters = np.repeat(np.arange(71), sizes)

    def draw(seed: int, *, clustered: bool = True) -> Interval:
        values = random.gamma(2, 1, 71)[clusters] + random.normal(size=len(clusters))
        return mean_interval(values, clusters if clustered else None, n_resamples=499, seed=seed)

    assert IN_BAND[0] <= covered(draw, 2.0, 1500) <= IN_BAND[1]
    assert covered(lambda seed: draw(seed, clustered=False), 2.0, 500) < 0.85


def test_a_mean_of_well_behaved_numbers_has_students_interval() -> None:
    values = np.random.default_rng(3).normal(5, 2, 997)
    found = mean_interval(values, n_resamples=40_000)
    student = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(student), abs=0.02 * (student.high - student.low))
    wide = mean_interval(values, confidence=0.99)
    assert wide.high - wide.low == pytest.approx((found.high - found.low) * 2.576 / 1.96, rel=0.05)


def test_a_transform_moves_value_and_ends() -> None:
    loss, words = wikitext(np.random.default_rng(4), 61)
    nats = ratio_interval(loss, words)
    assert nats.value == pytest.approx(loss.sum() / words.sum())
    assert nats.method == "bootstrap-t over documents"
    perplexity = ratio_interval(loss, words).transformed(np.exp)
    falling = ratio_interval(-loss, words).transformed(lambda mean: np.exp(-mean))
    expected = tuple(math.exp(number) for number in (nats.value, nats.low, nats.high))
    for found in (perplexity, falling):
        assert (found.value, found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert ratio_interval(loss, words, seed=1) != nats
    assert ratio_interval(loss, words, seed=0) == nats


def test_too_little_to_say() -> None:
    """No interval, and no warning (warnings are errors here)."""
    for found in (
        accuracy_interval([]),
        accuracy_interval([1, 0], [7, 7]),
        mean_interval([]),
        mean_interval([2.5]),
        mean_interval([2.5, 3.0], [7, 7]),
        ratio_interval([1.0, 2.0], [0.0, 0.0]),
        mean_interval([math.inf, 1.0]),
    ):
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.method == "none"
    assert mean_interval([2.5]).value == 2.5
    same = ratio_interval(0.1 * np.arange(1, 30), np.arange(1, 30)).transformed(np.exp)
    assert same.low == same.value == same.high == pytest.approx(math.exp(0.1))
    assert mean_interval([0.1, 0.2, 0.4]).method == "Student t over items"
    mostly_zero = mean_interval([0.0] * 200 + [0.5, 1.5])
    assert mostly_zero.method == "Student t over items"
    assert math.isfinite(mostly_zero.high)
    assert ratio_interval([900.0, 800, 1000, 950, 860, 990], np.ones(6)).transformed(np.exp).high == math.inf


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        accuracy_interval([0.5, 1])
    with pytest.raises(ValueError, match="3 clusters for 2 items"):
        accuracy_interval([0, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="numerators"):
        ratio_interval([1.0], [1.0, 2.0])


def test_ten_thousand_documents_fit_in_memory() -> None:
    random = np.random.default_rng(5)
    loss, words = wikitext(random, 10_000)
    tracemalloc.start()
    found = ratio_interval(loss, words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.low < WIKITEXT_LOSS < found.high
    assert peak < 100e6

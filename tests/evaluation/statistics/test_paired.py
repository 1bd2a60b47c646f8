"""Two models on the same items: tests and intervals against other programs and brute force, and their coverage."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from gptstar.evaluation.statistics.paired import Paired, holm, paired_accuracy, paired_ratio

IN_BAND = (0.93, 0.97)
"""Coverage asked of 95 % intervals."""


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of A and of B, `(item,)` each."""
    pairs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, only_a, only_b, neither], axis=0)
    return pairs[:, 0], pairs[:, 1]


def difficult(random: np.random.Generator, n: int, twin: float) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of two models, in twin items: right in 57 % and in 62 %.

    Args:
        twin: correlation of what twins share, of their difficulty and of what each model finds in them.
    """

    def shared() -> np.ndarray:
        pairs = math.sqrt(twin) * random.normal(size=(n // 2, 1)) + math.sqrt(1 - twin) * random.normal(
            size=(n // 2, 2)
        )
        return pairs.ravel()

    item = math.sqrt(0.5) * shared()
    ease = [item + math.sqrt(0.5) * shared() for _ in range(2)]
    return ease[0] < stats.norm.ppf(0.57), ease[1] < stats.norm.ppf(0.62)


def outcome(found: Sequence[Paired], truth: float) -> tuple[float, float]:
    """Share of intervals that hold the truth, and of p below 0.05."""
    holds = [each.low <= truth <= each.high for each in found]
    return float(np.mean(holds)), float(np.mean([each.p < 0.05 for each in found]))


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1),
        (1, 7, 0.0703125),
        (9, 2, 0.0654296875),
        (12, 12, 1),
        (11, 13, 0.8388197422027588),
        (12, 13, 0.841480581121794),
        (40, 71, 0.003256896947392942),
        (130, 88, 0.004446737355735963),
    ],
)
def test_mcnemar_is_statsmodels(only_a: int, only_b: int, p: float) -> None:
    """By `mcnemar(table, exact=only_a + only_b < 25, correction=False)` of statsmodels 0.15.0."""
    found = paired_accuracy(*answers(301, only_a, only_b, 211))
    few = only_a + only_b < 25
    assert found.difference == pytest.approx((only_b - only_a) / (512 + only_a + only_b))
    assert found.test == ("McNemar, exact" if few else "McNemar")
    assert found.low < found.difference + 1e-12
    assert found.high > found.difference - 1e-12
    assert found.p == pytest.approx(p, rel=1e-12)


def test_mcnemar_is_as_defined() -> None:
    """Exact: all ways in which coins may fall. Asymptotic: the square of a standard normal variable."""
    for only_a, only_b in itertools.product(range(26), repeat=2):
        n = only_a + only_b
        if 0 < n < 25:
            as_far = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(only_a - only_b))
            p = as_far / 2**n
        else:
            p = math.erfc(abs(only_a - only_b) / math.sqrt(2 * n)) if n else 1.0
        assert paired_accuracy(*answers(3, only_a, only_b, 2)).p == pytest.approx(p, rel=1e-12)


def test_the_interval_is_bonett_and_prices() -> None:
    """The example of their R package statpsych, ci.prop.ps(.05, 12, 4, 26, 6): 0.2548067 to 0.6251933."""
    found = paired_accuracy(*answers(both=6, only_a=4, only_b=26, neither=12))
    assert (found.low, found.high) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)
    assert found.difference == pytest.approx(22 / 48)


def test_flips_of_clusters_are_scipys() -> None:
    """A dozen clusters of 1 to 5 items: every way to flip them."""
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(12), np.resize([1, 2, 5], 12))
    for shift in (0.0, 0.2, 0.45):
        a, b = random.random(len(clusters)) < 0.4, random.random(len(clusters)) < 0.4 + shift
        sums = [np.bincount(clusters, each) for each in (a, b)]
        reference = stats.permutation_test(
            sums,
            lambda a, b, axis: np.abs((b - a).sum(axis)),
            permutation_type="samples",
            alternative="greater",
            vectorized=True,
            n_resamples=np.inf,
        )
        found = paired_accuracy(a, b, clusters)
        assert found.p == pytest.approx(reference.pvalue)
        assert found.test == "sign flips of clusters, exact"


def test_clusters_that_hold_one_change_each_are_as_items() -> None:
    a, b = answers(31, 9, 4, 23)
    same = np.repeat(1, len(a))
    doubled = np.stack([a, same], axis=1).ravel(), np.stack([b, same], axis=1).ravel()
    found = paired_accuracy(*doubled, np.repeat(np.arange(len(a)), 2))
    assert (found.p, paired_accuracy(a, b).p) == pytest.approx((0.266845703125, 0.266845703125))
    assert paired_accuracy(a, b, np.arange(len(a))) == paired_accuracy(a, b)


def test_doubled_items_tell_nothing_more() -> None:
    a, b = answers(310, 90, 140, 230)
    once = paired_accuracy(a, b)
    twice = paired_accuracy(np.repeat(a, 2), np.repeat(b, 2), np.repeat(np.arange(len(a)), 2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.001)
    assert twice.p == pytest.approx(once.p, rel=0.3)
    assert paired_accuracy(np.repeat(a, 2), np.repeat(b, 2)).p < once.p / 5


@pytest.mark.parametrize("n", [62, pytest.param(760, marks=pytest.mark.slow)])
@pytest.mark.parametrize("twin", [0.0, 0.8])
def test_paired_accuracies_cover(n: int, twin: float) -> None:
    random = np.random.default_rng(2)
    clusters = np.repeat(np.arange(n // 2), 2)
    drawn = [difficult(random, n, twin) for _ in range(1500)]
    coverage, power = outcome([paired_accuracy(a, b, clusters) for a, b in drawn], 0.05)
    assert IN_BAND[0] <= coverage <= IN_BAND[1]
    assert power > (0.4 if n > 100 else 0.04)
    if twin == 0:
        assert IN_BAND[0] <= outcome([paired_accuracy(a, b) for a, b in drawn], 0.05)[0] <= IN_BAND[1]
    elif n > 100:
        assert outcome([paired_accuracy(a, b) for a, b in drawn[:500]], 0.05)[0] < 0.92


def test_no_difference_is_found_in_one_of_twenty() -> None:
    random = np.random.default_rng(3)
    clusters = np.repeat(np.arange(380), 2)
    swap = random.random((1500, 380)) < 0.5
    found = []
    for exchanged in swap:
        a, b = difficult(random, 760, 0.5)
        which = np.repeat(exchanged, 2)
        found.append(paired_accuracy(np.where(which, a, b), np.where(which, b, a), clusters))
    coverage, rejected = outcome(found, 0.0)
    assert IN_BAND[0] <= coverage <= IN_BAND[1]
    assert 0.03 <= rejected <= 0.055  # exact, so never above 0.05 but for chance


@pytest.mark.parametrize(
    ("n", "skewed", "change"),
    [(60, True, 0.0), (60, True, -0.05), pytest.param(503, False, 0.0, marks=pytest.mark.slow)],
)
def test_paired_losses_cover(n: int, skewed: bool, change: float) -> None:
    """Skewed lengths, as WikiText's documents, and one number an item, as LAMBADA's; differences to both sides."""
    random = np.random.default_rng(4)
    found = []
    for seed in range(2000 if skewed else 800):
        z = random.normal(size=n)
        words = np.ceil(np.exp(7.94 + 0.67 * z)) if skewed else np.ones(n)
        a = 3.5 - 0.15 * z + 0.3 * random.gamma(2, 1, n)
        gain = change + 0.05 * random.laplace(size=n) + 0.02 * (z - 0.67 * skewed)
        found.append(paired_ratio(a * words, (a + gain) * words, words, n_resamples=499, seed=seed))
    coverage, rejected = outcome(found, change)
    assert IN_BAND[0] <= coverage <= IN_BAND[1]
    assert 0.03 <= rejected <= 0.07 if change == 0 else rejected > 0.9


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1])
def test_paired_means_agree_with_scipy(shift: float) -> None:
    random = np.random.default_rng(5)
    a = random.normal(size=1009)
    b = a + shift + random.normal(size=1009)
    found = paired_ratio(a, b, np.ones(1009), n_resamples=40_000)
    t_test = stats.ttest_rel(b, a)
    assert found.p == pytest.approx(t_test.pvalue, rel=0.15, abs=0.002)
    low, high = t_test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02 * (high - low))
    flipped = stats.permutation_test(
        (b, a),
        lambda b, a, axis: (b - a).mean(axis),
        permutation_type="samples",
        n_resamples=4000,
        batch=500,
        vectorized=True,
        rng=6,
    )
    assert found.p == pytest.approx(flipped.pvalue, abs=0.03)
    assert found.test == "paired bootstrap-t over items"


def test_p_and_interval_agree_and_have_no_favourite() -> None:
    random = np.random.default_rng(7)
    for seed in range(200):
        words = np.ceil(random.lognormal(5, 1, 23))
        a, b = random.gamma(3, 1, 23) * words, random.gamma(3, 1, 23) * words * 1.4
        there, back = (paired_ratio(*each, words, n_resamples=999, seed=seed) for each in ((a, b), (b, a)))
        assert (there.p <= 0.05) == (not there.low <= 0 <= there.high)
        assert (-back.high, -back.low, back.p) == pytest.approx((there.low, there.high, there.p))
        order = random.permutation(23)
        again = paired_ratio(a[order], b[order], words[order], n_resamples=999, seed=seed)
        assert (again.low, again.high, again.p) == pytest.approx((there.low, there.high, there.p))


def test_too_little_to_say() -> None:
    for found in (paired_accuracy([], []), paired_accuracy([1, 0], [1, 1], [3, 3]), paired_ratio([1.0], [2.0], [1.0])):
        assert all(math.isnan(number) for number in (found.low, found.high, found.p))
    same = paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], np.ones(3))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert paired_ratio(np.zeros(7), np.full(7, 0.3), np.ones(7)).p == 0.5**6
    with pytest.raises(ValueError, match="0 or 1"):
        paired_accuracy([0.5], [1])
    with pytest.raises(ValueError, match="numerators"):
        paired_ratio([1.0], [1.0, 2.0], [1.0, 1.0])


def test_holm_is_as_defined() -> None:
    """Smallest times 4, the next times 3 …, never falling, at most 1; one that is not known does not count."""
    assert holm([0.01, math.nan, 0.04, 0.03, 0.9]) == pytest.approx([0.04, math.nan, 0.09, 0.09, 0.9], nan_ok=True)
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.03, 0.2, 0.01, 0.6]) == pytest.approx([0.12, 0.06, 0.12, 0.4, 0.06, 0.6], rel=1e-12)


def test_holm_is_the_closure_of_bonferroni() -> None:
    """What Holm proved: a hypothesis falls just where Bonferroni rejects every set that it is in."""
    random = np.random.default_rng(5)
    for n in (1, 2, 3, 7):
        p = np.round(random.random(n) ** 3, 2)  # rounded: some are equal
        sets = [list(each) for size in range(1, n + 1) for each in itertools.combinations(range(n), size)]
        closed = [max(min(1, len(each) * p[each].min()) for each in sets if number in each) for number in range(n)]
        assert holm(list(p)) == pytest.approx(closed, rel=1e-12)

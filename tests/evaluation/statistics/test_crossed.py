"""Intervals over seeds and units of text: as known where one source varies, and with the coverage they say."""

import math

import numpy as np
import pytest
from scipy import stats

from gptstar.evaluation.statistics.crossed import Crossed, crossed_ratio
from gptstar.evaluation.statistics.paired import paired_ratio


def of(differences: np.ndarray, weights: np.ndarray | None = None) -> Crossed:
    weights = np.full(differences.shape[1], 1.0) if weights is None else weights
    before = np.random.default_rng(1).normal(5, 1, differences.shape)
    return crossed_ratio(before, before + differences, weights)


def test_one_source_of_variance_has_the_t_interval_over_it() -> None:
    random = np.random.default_rng(0)
    for axis, n, freedom in ((0, 5, 4), (1, 20, 19)):
        effects = random.normal(0.3, 1, n)
        table = np.broadcast_to(np.expand_dims(effects, 1 - axis), (5, 20))
        found = of(table)
        assert found.freedom == pytest.approx(freedom)
        assert found.value == pytest.approx(effects.mean())
        known = stats.ttest_1samp(effects, 0)
        assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
        assert found.p == pytest.approx(known.pvalue)


def test_both_sources_have_the_variance_of_the_mean_squares() -> None:
    random = np.random.default_rng(2)
    table = random.normal(0, 1, (3, 1)) + random.normal(0, 2, (1, 7)) + random.normal(0, 0.1, (3, 7))
    found = of(table)
    by_seed = 7 * table.mean(axis=1).var(ddof=1)
    by_unit = 3 * table.mean(axis=0).var(ddof=1)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    by_both = (rest**2).sum() / 12
    error = math.sqrt((by_seed + by_unit - by_both) / 21)
    freedom = (by_seed + by_unit - by_both) ** 2 / (by_seed**2 / 2 + by_unit**2 / 6 + by_both**2 / 12)
    assert found.freedom == pytest.approx(freedom)
    assert (found.high - found.low) / 2 == pytest.approx(error * stats.t.ppf(0.975, freedom))
    assert found.over == "seeds and units"


def test_weights_make_the_mean_of_ratios() -> None:
    random = np.random.default_rng(3)
    weights = random.integers(1, 90, 11).astype(float)
    table = random.normal(0.2, 1, (3, 11)) * weights
    found = of(table, weights)
    ratios = table.sum(axis=1) / weights.sum()
    assert found.value == pytest.approx(ratios.mean())
    same = of(np.broadcast_to(table.mean(axis=0), (3, 11)), weights)  # seeds alike: the linearised ratio of one
    share = weights / weights.sum()
    linear = (table.mean(axis=0) - same.value * weights) / weights.mean() / (1 - share)
    error = math.sqrt((linear**2).sum() * 10 / 11) / 11  # the jackknife's, of the ratio
    n_effective = 1 / (share**2).sum()
    assert same.freedom == pytest.approx(n_effective - 1)
    assert (same.high - same.low) / 2 == pytest.approx(error * stats.t.ppf(0.975, n_effective - 1))
    assert same.largest == share.max()


def test_a_single_seed_or_unit_says_what_its_interval_is_over() -> None:
    random = np.random.default_rng(4)
    before, after, weights = random.normal(5, 1, (1, 20)), random.normal(5, 1, (1, 20)), np.ones(20)
    found, known = crossed_ratio(before, after, weights), paired_ratio(before[0], after[0], weights)
    assert (found.value, found.low, found.high, found.p) == (known.difference, known.low, known.high, known.p)
    assert found.over == "units"
    several = of(random.normal(0, 1, (5, 1)))
    assert (several.over, several.freedom) == ("seeds", 4)
    nothing = of(np.ones((1, 1)))
    assert nothing.over == "nothing"
    assert math.isnan(nothing.low)
    alike = of(np.full((3, 4), 0.25))
    assert (alike.low, alike.high, alike.p) == (pytest.approx(0.25), pytest.approx(0.25), 0.25)
    assert of(np.zeros((3, 4))).p == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        crossed_ratio(np.ones((2, 3)), np.ones((2, 3)), np.ones(2))
    with pytest.raises(ValueError, match="weights"):
        crossed_ratio(np.ones(3), np.ones(3), np.ones(3))


EQUAL = (1,) * 20
UNEQUAL = (1, 1, 1, 1, 1, 2, 2, 3, 5, 15)
"""Ten books, of which one has nearly half of all blocks."""


def coverage(
    n_seeds: int, spread: tuple[float, float, float], sizes: tuple[int, ...] = EQUAL, n_sets: int = 2000
) -> float:
    """How often the interval holds the true mean, 0, of normal effects with spreads of seeds, units and both."""
    random, weights = np.random.default_rng(n_seeds), np.array(sizes, dtype=float)
    held, n_units = 0, len(sizes)
    for _ in range(n_sets):
        table = random.normal(0, spread[0], (n_seeds, 1)) + random.normal(0, spread[1], (1, n_units))
        table += random.normal(0, spread[2], (n_seeds, n_units)) / np.sqrt(weights)
        found = of(table * weights, weights)
        held += found.low <= 0 <= found.high
    return held / n_sets


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("spread", [(1, 1, 1), (0.3, 1, 1), (1, 0.3, 1), (0, 1, 0.3), (0.3, 0, 1), (0, 0, 1)])
def test_coverage_is_at_least_nearly_what_it_says(n_seeds: int, spread: tuple[float, float, float]) -> None:
    assert coverage(n_seeds, spread) > 0.93


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("spread", [(0.3, 1, 0.5), (0, 1, 0.3), (0.1, 1, 2)])
def test_units_of_unequal_sizes_have_the_coverage_too(n_seeds: int, spread: tuple[float, float, float]) -> None:
    assert coverage(n_seeds, spread, UNEQUAL) > 0.93


@pytest.mark.filterwarnings("error")
def test_an_infinite_loss_has_no_interval() -> None:
    for before, after in ((math.inf, math.inf), (1.0, math.inf)):
        found = crossed_ratio([[before, 1.0], [1.0, 1.0]], [[after, 1.0], [1.0, 1.0]], [1, 1])
        assert not math.isfinite(found.value)
        assert math.isnan(found.low)

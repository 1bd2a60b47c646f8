"""Weighted means over tasks: their value, their spread, and how often the interval holds the truth."""

import numpy as np
import pytest

from gptstar.evaluation.statistics.intervals import ratio_interval
from gptstar.evaluation.statistics.strata import Stratum, pooled


def stratum(x: list[float], weight: float = 1.0, clusters: list[int] | None = None, name: str = "") -> Stratum:
    own = list(range(len(x))) if clusters is None else clusters
    return Stratum(x, np.ones(len(x)), own, [f"{name}{number}" for number in range(len(x))], weight)


def test_the_mean_is_that_of_the_ratios_and_what_tasks_differ_by_is_no_spread() -> None:
    easy, hard = stratum([0.9, 1.0, 1.1], name="a"), stratum([0.1, 0.2, 0.3, 0.2], name="b")
    found = pooled([easy, hard])
    assert found is not None
    numbers, clusters = found
    assert numbers.mean() == pytest.approx((1.0 + 0.2) / 2)
    assert len(set(clusters)) == 7
    error = np.sqrt(np.var([0.9, 1.0, 1.1], ddof=1) / 3 + np.var([0.1, 0.2, 0.3, 0.2], ddof=1) / 4) / 2
    assert numbers.std() / np.sqrt(7) == pytest.approx(error)


def test_weights_and_ratios_count() -> None:
    first = Stratum([2.0, 4.0], [1.0, 3.0], [0, 1], ["a", "b"], 3.0)
    second = Stratum([5.0, 1.0], [1.0, 1.0], [0, 1], ["c", "d"], 1.0)
    found = pooled([first, second])
    assert found is not None
    assert found[0].mean() == pytest.approx(0.75 * 6 / 4 + 0.25 * 3)


def test_copies_within_and_across_tasks_are_one_cluster() -> None:
    found = pooled([stratum([0.0, 1.0, 1.0], clusters=[0, 0, 2], name="a"), stratum([0.0, 1.0], name="a")])
    assert found is not None
    assert len(set(found[1])) == 2  # a0, a1 and a0, a1 of the other are one; a2 is by itself
    assert pooled([stratum([0.0, 1.0], name="a"), stratum([1.0], name="b")]) is None


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[100] * 20, [3] * 40, [5, 200, 30, 9, 80]])
def test_intervals_hold_the_truth(sizes: list[int]) -> None:
    """Of 400 draws: the standard error of the coverage is 0.011 to 0.014."""
    random = np.random.default_rng(5)
    shares = random.uniform(0.3, 0.95, len(sizes))
    held = 0
    for _ in range(400):
        draws = [(random.random(size) < share).astype(float) for size, share in zip(sizes, shares, strict=True)]
        found = pooled([stratum(list(each), name=f"{number}.") for number, each in enumerate(draws)])
        assert found is not None
        interval = ratio_interval(found[0], np.ones(len(found[0])), found[1], n_resamples=199)
        held += interval.low <= shares.mean() <= interval.high
    assert 0.89 <= held / 400 <= 0.985

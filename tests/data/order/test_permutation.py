import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.order.permutation import Grouping, blocks_at, permute, permute_runs

GROUPS = Grouping(run=3, runs=2)


def each_once(images: np.ndarray) -> bool:
    return images.min() >= 0 and np.array_equal(np.bincount(images), np.ones(len(images)))


def chi_squared(observed: np.ndarray) -> float:
    expected = observed.sum() / len(observed)
    return float(((observed - expected) ** 2 / expected).sum())


def test_a_bijection_on_every_small_size() -> None:
    assert all(each_once(permute(np.arange(n), n, b"key")) for n in range(1, 2001))


@pytest.mark.slow
def test_an_order_in_groups_is_a_bijection_on_every_small_size() -> None:
    for n in range(1, 2001):
        run = (1, 2, 3, 7, 31, 251)[n % 6]
        grouping = Grouping(run, max(1, n // run // 2))  # some two groups, with and without blocks left over
        assert each_once(grouping.permute(np.arange(n), n, "key")), (n, grouping)


@pytest.mark.parametrize("run", [1, 2, 5, 60])
@pytest.mark.parametrize("runs", [1, 3, 11])
def test_an_order_in_groups_is_a_bijection_whatever_the_groups(run: int, runs: int) -> None:
    assert all(each_once(Grouping(run, runs).permute(np.arange(n), n, "key")) for n in range(1, 90))


@given(st.integers(1, 2**40), st.binary(min_size=1, max_size=16))
@settings(deadline=None, max_examples=60)
def test_no_two_indices_meet_at_any_size(n: int, key: bytes) -> None:
    indices = np.unique(np.random.default_rng(0).integers(0, n, 2000))
    images = permute(indices, n, key)
    assert len(np.unique(images)) == len(indices)
    assert images.min() >= 0
    assert images.max() < n


@given(st.integers(1, 2**40), st.integers(1, 2**20), st.integers(1, 2**20), st.text("abc", max_size=16))
@settings(deadline=None, max_examples=60)
def test_no_two_indices_meet_in_groups_of_any_size(n: int, run: int, runs: int, key: str) -> None:
    random = np.random.default_rng(0)
    corners = np.asarray([0, n // run * run, n - 1, *random.integers(0, n, 3), *random.integers(0, run, 3)])
    indices = (corners[:, None] + np.arange(-40, 40)).reshape(-1)
    indices = np.unique(indices[(indices >= 0) & (indices < n)])
    images = Grouping(run, runs).permute(indices, n, key)
    assert len(np.unique(images)) == len(indices)
    assert images.min() >= 0
    assert images.max() < n


@pytest.mark.slow
def test_first_places_and_neighbours_are_uniform() -> None:
    n, keys = 11, 6600
    images = np.stack([permute(np.arange(n), n, str(key).encode()) for key in range(keys)])  # (key, index)
    for statistic in (images[:, 0], images[:, n - 1], (images[:, 4] - images[:, 3]) % n):
        observed = np.bincount(statistic, minlength=n)
        observed = observed[1:] if observed[0] == 0 else observed  # a neighbour is never the same block
        assert chi_squared(observed) < 29.6  # p = 0.001 at 10 degrees of freedom


@pytest.mark.slow
def test_places_and_neighbours_in_groups_are_uniform() -> None:
    n, keys = 23, 4600  # 3 full groups of 6 blocks, and one run with 2 blocks left over
    images = np.stack([GROUPS.permute(np.arange(n), n, str(key)) for key in range(keys)])  # (key, index)
    for index in (0, 7, 18, 22):
        assert chi_squared(np.bincount(images[:, index], minlength=n)) < 48.3  # p = 0.001 at 22 degrees of freedom
    ranks = images[:, 6:12].argsort(axis=1).argsort(axis=1)  # of a group's blocks among themselves
    for index in (0, 3, 5):
        assert chi_squared(np.bincount(ranks[:, index], minlength=6)) < 20.6  # 5 degrees
    assert chi_squared(np.bincount((ranks[:, 3] - ranks[:, 2]) % 6, minlength=6)[1:]) < 18.5  # 4 degrees


@pytest.mark.slow
def test_which_runs_make_a_group_is_uniform() -> None:
    n, keys = 21, 4200  # 7 runs, none cut
    runs = np.stack([permute_runs(np.arange(0, n, 3), n, 3, str(key).encode()) for key in range(keys)])  # (key, run)
    assert chi_squared(np.bincount(runs[:, 0], minlength=n)) < 45.4  # 20 degrees of freedom
    apart = (runs[:, 1] - runs[:, 0]) % n
    assert set(apart % 3) == {0}
    assert chi_squared(np.bincount(apart // 3, minlength=7)[1:]) < 20.6  # 5 degrees


def test_a_group_reads_whole_runs_and_its_share_of_them() -> None:
    n, grouping = 5 * 40 + 3, Grouping(run=5, runs=4)
    images = grouping.permute(np.arange(n), n, "key")
    for group in range(10):
        first, end = grouping.bounds(group, n)
        assert end - first == (20 if group < 9 else 23)
        here = np.sort(images[first:end])
        stretches = np.split(here, np.flatnonzero(np.diff(here) != 1) + 1)
        assert len(stretches) <= 4 + 2  # what is left over, and a run that goes on at 0
        assert np.array_equal(here, np.sort(permute_runs(np.arange(first, end), n, 5, b"key")))
    assert grouping.groups_at(np.asarray([0, 19, 20, 199, 202]), n).tolist() == [0, 0, 1, 9, 9]


def test_each_group_has_an_order_of_its_own() -> None:
    n, grouping = 5 * 40, Grouping(run=5, runs=4)
    together = permute_runs(np.arange(n), n, 5, b"key")
    inside = np.argsort(together)[grouping.permute(np.arange(n), n, "key")].reshape(10, 20) % 20
    assert len(np.unique(inside, axis=0)) == 10


def test_groups_hold_as_many_tokens_as_asked_for() -> None:
    assert Grouping.of_tokens(2**30, 1024) == Grouping(run=256, runs=4096)
    assert Grouping.of_tokens(2**30 - 1, 1024) == Grouping(run=256, runs=4095)
    assert Grouping.of_tokens(5000, 1024) == Grouping(run=256, runs=1)
    assert Grouping.of_tokens(2**21, 2**20) == Grouping(run=1, runs=2)


@pytest.mark.parametrize("grouping", [None, GROUPS])
def test_every_epoch_holds_each_block_once_in_another_order(grouping: Grouping | None) -> None:
    n = 37
    epochs = blocks_at(np.arange(3 * n), n, 5, grouping).reshape(3, n)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(blocks_at(np.arange(n), n, 6, grouping), epochs[0])


@pytest.mark.parametrize("grouping", [None, GROUPS, Grouping(run=256, runs=4096)])
def test_a_far_position_needs_no_past(grouping: Grouping | None) -> None:
    n = 12_345_679
    far = np.arange(10**10, 10**10 + 50)
    assert np.array_equal(blocks_at(far, n, 0, grouping)[20:], blocks_at(far[20:], n, 0, grouping))

    def seconds(positions: np.ndarray) -> float:
        began = time.perf_counter()
        blocks_at(positions, n, 0, grouping)
        return time.perf_counter() - began

    near = min(seconds(np.arange(50)) for _ in range(20))
    assert min(seconds(far) for _ in range(20)) < 5 * near
    tracemalloc.start()
    blocks_at(far, n, 0, grouping)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**17


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_never_changes_between_versions(seed: int) -> None:
    """Runs that go on after an upgrade depend on this."""
    expected = {0: [17, 43, 41, 25, 14], 1: [55, 43, 75, 25, 39]}
    assert blocks_at(np.arange(5), 101, seed).tolist() == expected[seed]
    in_groups = {0: [96, 74, 50, 46, 77], 1: [23, 20, 46, 99, 93]}
    assert blocks_at(np.arange(203, 208), 101, seed, Grouping(run=7, runs=3)).tolist() == in_groups[seed]

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.order.mixture import Entry, Mixture
from gptstar.data.order.permutation import Grouping, blocks_at
from gptstar.errors import ConfigError, DataError

GROUPS = Grouping(run=5, runs=3)
Block = tuple[int, int]


def read(mixture: Mixture, seed: int = 0, epoch: int = 0) -> Counter[Block]:
    """How often each block of each stream is read in a mixture epoch."""
    positions = np.arange(epoch * mixture.n_blocks, (epoch + 1) * mixture.n_blocks)
    streams, blocks = mixture.blocks_at(positions, seed)
    return Counter(zip(streams.tolist(), blocks.tolist(), strict=True))


def every(stream: int, n_blocks: int, times: int) -> dict[Block, int]:
    return {(stream, block): times for block in range(n_blocks)}


def test_streams_read_once_each_keep_the_order_they_always_had() -> None:
    mixture = Mixture((Entry(7, 7), Entry(0, 0), Entry(4, 4)))
    streams, blocks = mixture.blocks_at(np.arange(40), seed=3)
    assert np.array_equal(np.asarray([0, 7, 7])[streams] + blocks, blocks_at(np.arange(40), 11, 3))


@pytest.mark.parametrize("grouping", [None, GROUPS])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_half_an_epoch_reads_the_same_blocks_at_every_seed(seed: int, grouping: Grouping | None) -> None:
    blocks = {("half", "first"): 13, ("half", "rest"): 11, ("whole", "first"): 17}
    mixture = Mixture.from_epochs(blocks, {"half": 0.5, "whole": 1.0}, grouping)
    for epoch in range(3):
        assert read(mixture, seed, epoch) == every(0, 13, 1) | every(2, 17, 1)


@pytest.mark.parametrize("grouping", [None, GROUPS])
def test_two_epochs_and_a_half_read_each_block_twice_and_half_of_them_once_more(grouping: Grouping | None) -> None:
    mixture = Mixture.from_epochs({("a", "first"): 13, ("a", "rest"): 11}, {"a": 2.5}, grouping)
    assert read(mixture) == every(0, 13, 3) | every(1, 11, 2)


def test_whole_epochs_read_both_strata_alike_even_where_floats_are_off() -> None:
    for epochs in (3.0, 3.0000000001, 2.9999999999):
        mixture = Mixture.from_epochs({("a", "first"): 13, ("a", "rest"): 11}, {"a": epochs})
        assert read(mixture) == every(0, 13, 3) | every(1, 11, 3)


@pytest.mark.parametrize("grouping", [None, GROUPS])
def test_weights_give_whole_passes_and_some_blocks_once_more(grouping: Grouping | None) -> None:
    mixture = Mixture.from_weights({"small": 7, "large": 101}, {"small": 3.0, "large": 7.0}, 60 * 64 + 63, 64, grouping)
    assert [entry.count for entry in mixture.entries] == [18, 42]
    partial = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        times = read(mixture, seed, epoch)
        small = [times[0, block] for block in range(7)]
        large = [times[1, block] for block in range(101)]
        assert sorted(small) == [2] * 3 + [3] * 4
        assert sorted(large) == [0] * 59 + [1] * 42
        partial.append(tuple(large))
    assert len(set(partial)) == 3


@pytest.mark.slow
def test_blocks_of_a_partial_pass_are_uniform_and_lie_in_runs() -> None:
    entries, seeds = (Entry(23, 9),), 700
    times = sum((read(Mixture(entries), seed) for seed in range(seeds)), Counter())
    expected = seeds * 9 / 23
    assert sum((times[0, block] - expected) ** 2 / expected for block in range(23)) < 48.3  # p = 0.001, 22 degrees
    in_groups = sum((read(Mixture(entries, GROUPS), seed) for seed in range(seeds)), Counter())
    # Neighbours come together, five at a time, so the counts vary up to five times as much.
    assert sum((in_groups[0, block] - expected) ** 2 / expected for block in range(23)) < 5 * 48.3
    for seed in range(20):
        here = np.sort([block for _, block in read(Mixture(entries, GROUPS), seed)])
        assert (np.diff(here) != 1).sum() <= 2  # a run, a part of one, and one that goes on at 0


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.floats(0.25, 4.0), min_size=1, max_size=12),
    st.integers(2**8, 2**40),
)
@settings(deadline=None, max_examples=200)
def test_shares_add_up_and_are_less_than_a_block_off(weights: dict[str, float], count: int) -> None:
    mixture = Mixture.from_weights(dict.fromkeys(weights, 5), weights, 64 * count, 64)
    assert mixture.n_blocks == count
    for entry, weight in zip(mixture.entries, weights.values(), strict=True):
        assert abs(entry.count - count * weight / sum(weights.values())) < 1.001


def test_what_is_left_of_a_share_goes_to_the_largest_remainder() -> None:
    def counts(weights: Iterable[float]) -> list[int]:
        given = dict(zip("abc", weights, strict=True))
        return [entry.count for entry in Mixture.from_weights(dict.fromkeys("abc", 5), given, 10, 1).entries]

    assert counts([1, 1, 1]) == [4, 3, 3]  # the first of equals
    assert counts([1.26, 1.27, 7.47]) == [1, 1, 8]
    assert counts([2.6, 2.7, 4.7]) == [2, 3, 5]


def test_mixtures_that_can_not_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"^data.corpora.b has a weight, but no block of 64 tokens .* add text"):
        Mixture.from_weights({"a": 5, "b": 0}, {"a": 1.0, "b": 1.0}, 640, 64)
    with pytest.raises(ConfigError, match=r"^data.corpora.b.weight=0.001 comes to less than a block .* raise either"):
        Mixture.from_weights({"a": 5, "b": 5}, {"a": 1.0, "b": 0.001}, 640, 64)
    with pytest.raises(ConfigError, match=r"^data.mixture_tokens=63 is less than one block .*64.* raise it"):
        Mixture.from_weights({"a": 5}, {"a": 1.0}, 63, 64)
    with pytest.raises(DataError, match=r"shorter than one block .*: add text"):
        Mixture.from_epochs({("a", "first"): 0}, {"a": 2.0})
    with pytest.raises(DataError, match="shorter than one block"):
        Mixture(())


def test_a_group_of_a_mixture_reads_few_stretches_of_its_streams() -> None:
    mixture = Mixture((Entry(7, 18), Entry(101, 42), Entry(0, 0), Entry(31, 31)), GROUPS)
    for first in range(0, 75, 15):  # 5 groups of 3 runs, and one more with what is left over
        streams, blocks = mixture.blocks_at(np.arange(5 * 91 + first, 5 * 91 + first + 15), seed=2)
        places = np.unique(1000 * streams + blocks)
        # A run may be cut where a pass or a stream ends, and where the mixture begins again.
        assert 1 + (np.diff(places) != 1).sum() <= 2 * 3 + 1


def test_a_far_position_needs_no_past() -> None:
    mixture = Mixture((Entry(12_345_679, 30_000_001), Entry(997, 2000)), Grouping(run=256, runs=4096))
    far = np.arange(10**10, 10**10 + 50)
    whole, tail = mixture.blocks_at(far, 0), mixture.blocks_at(far[20:], 0)
    assert np.array_equal(whole[0][20:], tail[0])
    assert np.array_equal(whole[1][20:], tail[1])


@pytest.mark.parametrize("grouping", [None, GROUPS])
def test_partial_passes_take_turns_through_all_blocks(grouping: Grouping | None) -> None:
    mixture = Mixture((Entry(7, 18), Entry(101, 42)), grouping)
    times = sum((read(mixture, 3, epoch) for epoch in range(101)), Counter())
    assert {times[1, block] for block in range(101)} == {42}
    early = sum((read(mixture, 3, epoch) for epoch in range(3)), Counter())
    assert {early[1, block] for block in range(101)} == {1, 2}


def test_the_order_never_changes_between_versions() -> None:
    """Runs that go on after an upgrade depend on this."""
    entries = Entry(7, 18), Entry(101, 42)
    expected = {
        None: ([1, 0, 1, 0, 1, 0, 0], [39, 1, 42, 5, 56, 0, 0]),
        GROUPS: ([0, 1, 1, 1, 0, 1, 0], [1, 52, 9, 7, 6, 87, 3]),
    }
    for grouping, (streams, blocks) in expected.items():
        found = Mixture(entries, grouping).blocks_at(np.arange(130, 137), seed=1)
        assert [each.tolist() for each in found] == [streams, blocks]

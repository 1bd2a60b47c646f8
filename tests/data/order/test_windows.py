import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from torch.utils.data import DataLoader

from gptstar.data.order.mixture import Entry, Mixture
from gptstar.data.order.permutation import Grouping
from gptstar.data.order.windows import StepSampler, Windows
from gptstar.data.storage.stream import TokenStream
from gptstar.errors import ConfigError

BLOCK = 60


class Far:
    """Tokens that know their length and give slices, and nothing else of an array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, where: slice) -> np.ndarray:
        assert isinstance(where, slice)
        assert 0 <= where.start <= where.stop <= len(self._array)
        return self._array[where]


@pytest.fixture
def streams() -> list[TokenStream]:
    """Two corpora, the first in two shards; every token is its own position, so that windows can be told apart."""
    first, second = np.arange(7 * BLOCK + 1), 10_000 + np.arange(4 * BLOCK + 31)
    return [TokenStream([first[:113], first[113:]]), TokenStream([second])]


def sampler(windows: Windows, sequences: int, mixture: Mixture | None = None, **changes: int) -> StepSampler:
    mixture = mixture or Mixture(tuple(Entry(n, n) for n in windows.stream_blocks))
    options = {"seed": 3, "micro_batch_size": 1, "start_step": 0, "total_steps": 9}
    return StepSampler(windows, mixture, sequences_per_step=sequences, **{**options, **changes})


def uncollated(windows: object) -> object:
    return windows


def test_windows_cross_shards_and_share_one_token(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    assert windows.n_blocks == 7 + 4
    assert len(windows) == 33
    first, second = windows.__getitems__([5, 6]).tolist()
    assert first == list(range(100, 121))
    assert second[0] == first[-1]
    assert windows.__getitems__([7 * 3])[0, 0] == 10_000
    assert windows.__getitems__([32])[0, -1] == 10_000 + 4 * BLOCK


def test_windows_come_in_the_order_they_are_asked_for(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    numbers = np.random.default_rng(0).integers(0, len(windows), 97).tolist()
    batch = windows.__getitems__(numbers)
    assert batch.shape == (97, 21)
    for row, number in zip(batch.tolist(), numbers, strict=True):
        first = number * 20 if number < 21 else 10_000 + (number - 21) * 20
        assert row == list(range(first, first + 21))


def test_a_window_is_named_by_stream_and_block(streams: list[TokenStream]) -> None:
    windows = Windows([streams[0], TokenStream([]), streams[1]], 20, BLOCK)
    assert windows.stream_blocks == (7, 0, 4)
    assert windows.numbers(np.asarray([2, 0]), np.asarray([3, 5])).tolist() == [30, 31, 32, 15, 16, 17]
    assert windows.starts([31, 15]).tolist() == [len(streams[0]) + 3 * BLOCK + 20, 5 * BLOCK]


def test_a_last_block_needs_a_token_beyond_it(streams: list[TokenStream]) -> None:
    assert Windows([TokenStream([np.arange(BLOCK)])], 20, BLOCK).n_blocks == 0
    assert Windows([TokenStream([np.arange(BLOCK + 1)])], 20, BLOCK).n_blocks == 1


@pytest.mark.parametrize("kind", [np.asarray, Far])
@pytest.mark.parametrize("cuts", [(), (1,), (13, 14, 31), (0, 97, 97, 101)])
def test_rows_are_gathered_from_all_shards(kind: type, cuts: Sequence[int]) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 131).astype(np.uint16)
    stream = TokenStream([kind(shard) for shard in np.split(tokens, cuts)])
    for count in (1, 2, 37, 131):
        starts = np.random.default_rng(1).permutation(131 - count + 1)
        rows = stream.gather(starts, count)
        assert rows.dtype == np.int64
        assert np.array_equal(rows, tokens[starts[:, None] + np.arange(count)])
    with pytest.raises(IndexError):
        stream.gather(np.asarray([3, 131 - 36]), 37)


def test_rows_are_gathered_from_mapped_files(tmp_path: object) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 1009).astype(np.uint16)
    np.save(f"{tmp_path}/a.npy", tokens[:401])
    np.save(f"{tmp_path}/b.npy", tokens[401:])
    stream = TokenStream([np.load(f"{tmp_path}/{name}.npy", mmap_mode="r") for name in "ab"])
    starts = np.arange(0, 1009 - 17)
    assert np.array_equal(stream.gather(starts, 17), tokens[starts[:, None] + np.arange(17)])


@pytest.mark.parametrize("grouping", [None, Grouping(run=2, runs=2)])
def test_the_same_step_reads_the_same_targets_at_every_context_length(
    streams: list[TokenStream], grouping: Grouping | None
) -> None:
    def targets(context: int, step: int) -> list[int]:
        windows = Windows(streams, context, BLOCK)
        mixture = Mixture((Entry(7, 16), Entry(4, 3)), grouping)
        numbers = sampler(windows, 2 * BLOCK // context, mixture).global_batch(step)
        return windows.__getitems__(numbers)[:, 1:].flatten().tolist()

    for step in range(13):
        assert targets(60, step) == targets(20, step) == targets(4, step)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_global_batches_do_not_depend_on_ranks(
    streams: list[TokenStream], world_size: int, micro_batch_size: int
) -> None:
    windows = Windows(streams, 5, BLOCK)
    options = {"micro_batch_size": micro_batch_size, "world_size": world_size}
    ranks = [list(sampler(windows, 36, rank=rank, **options)) for rank in range(world_size)]
    per_step = 36 // (world_size * micro_batch_size)
    for step in range(9):
        here = [batch for rank in ranks for batch in rank[step * per_step : (step + 1) * per_step]]
        assert sum(here, []) == sampler(windows, 36).global_batch(step).tolist()
    assert {len(rank) for rank in ranks} == {len(sampler(windows, 36, rank=0, **options))}


def test_a_run_that_goes_on_at_other_numbers_of_ranks_reads_the_same_chain(streams: list[TokenStream]) -> None:
    """From 2 ranks to 1 to 4: hashes of global batches, each with the one before, and every block once in an epoch."""
    windows = Windows(streams, 5, BLOCK)

    def chain(*legs: tuple[int, int, int]) -> tuple[list[str], list[int]]:
        hashes, read = [""], []
        for world_size, start, end in legs:
            options = {"world_size": world_size, "micro_batch_size": 3, "start_step": start, "total_steps": end}
            ranks = [iter(sampler(windows, 12, rank=rank, **options)) for rank in range(world_size)]
            for _ in range(start, end):
                batch = [number for rank in ranks for _ in range(4 // world_size) for number in next(rank)]
                tokens = windows.__getitems__(batch).numpy().tobytes()
                hashes.append(hashlib.sha256(hashes[-1].encode() + tokens).hexdigest())
                read += batch
        return hashes, read

    whole, _ = chain((1, 0, 11))
    elastic, read = chain((2, 0, 3), (1, 3, 7), (4, 7, 11))
    assert elastic == whole
    assert sorted(read) == list(range(len(windows)))  # the epoch's 11 steps of a block


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("grouping", [None, Grouping(run=2, runs=2)], ids=["anywhere", "groups"])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, *(pytest.param(each, marks=pytest.mark.slow) for each in (4, 8))])
def test_loaders_read_the_same_tokens_whatever_the_ranks_and_workers(
    streams: list[TokenStream], world_size: int, workers: int, grouping: Grouping | None
) -> None:
    windows = Windows(streams, 20, BLOCK)
    mixture = Mixture((Entry(7, 16), Entry(4, 3)), grouping)
    whole = sampler(windows, 24, mixture, start_step=1, total_steps=4)
    expected = [windows.__getitems__(whole.global_batch(step)).tolist() for step in (1, 2, 3)]
    ranks = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "start_step": 1, "total_steps": 4}
        batches = sampler(windows, 24, mixture, **options)
        loader = DataLoader(windows, batch_sampler=batches, collate_fn=uncollated, num_workers=workers)
        rows = [row for batch in loader for row in batch.tolist()]
        ranks.append(np.asarray(rows).reshape(3, 24 // world_size, 21))
    assert np.concatenate(ranks, axis=1).tolist() == expected


def test_a_run_goes_on_where_it_was(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    whole = list(sampler(windows, 6))
    assert list(sampler(windows, 6, start_step=4)) == whole[4 * 6 :]
    assert list(sampler(windows, 6, seed=4)) != whole


def test_an_epoch_reads_each_block_once_even_where_a_step_straddles_its_end(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    numbers = sum(sampler(windows, 2 * 3, total_steps=11), [])  # 2 blocks a step, 11 blocks an epoch
    assert sorted(numbers[:33]) == sorted(numbers[33:]) == list(range(33))


def test_steps_that_do_not_divide_are_refused(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    with pytest.raises(ConfigError, match="whole number of blocks"):
        sampler(windows, 4)
    with pytest.raises(ConfigError, match="does not divide among 4 ranks"):
        sampler(windows, 6, world_size=4)

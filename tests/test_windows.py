import numpy as np
import pytest

from gptstar.data.shards import TokenStream
from gptstar.data.windows import StepSampler, Windows
from gptstar.errors import ConfigError

BLOCK = 60


@pytest.fixture
def streams() -> list[TokenStream]:
    """Two corpora, the first in two shards; every token is its own position, so that windows can be told apart."""
    first, second = np.arange(7 * BLOCK + 1), 10_000 + np.arange(4 * BLOCK + 31)
    return [TokenStream([first[:113], first[113:]]), TokenStream([second])]


def sampler(windows: Windows, sequences: int, **changes: int) -> StepSampler:
    options = {"seed": 3, "micro_batch_size": 1, "start_step": 0, "total_steps": 9}
    return StepSampler(windows, sequences_per_step=sequences, **{**options, **changes})


def test_windows_cross_shards_and_share_one_token(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    assert windows.n_blocks == 7 + 4
    assert len(windows) == 33
    first, second = windows.__getitems__([5, 6]).tolist()
    assert first == list(range(100, 121))
    assert second[0] == first[-1]
    assert windows.__getitems__([7 * 3])[0, 0] == 10_000
    assert windows.__getitems__([32])[0, -1] == 10_000 + 4 * BLOCK


def test_a_last_block_needs_a_token_beyond_it(streams: list[TokenStream]) -> None:
    assert Windows([TokenStream([np.arange(BLOCK)])], 20, BLOCK).n_blocks == 0
    assert Windows([TokenStream([np.arange(BLOCK + 1)])], 20, BLOCK).n_blocks == 1


def test_the_same_step_reads_the_same_targets_at_every_context_length(streams: list[TokenStream]) -> None:
    def targets(context: int, step: int) -> list[int]:
        windows = Windows(streams, context, BLOCK)
        numbers = sampler(windows, 2 * BLOCK // context).global_batch(step)
        return windows.__getitems__(numbers)[:, 1:].flatten().tolist()

    for step in range(9):
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


def test_a_run_goes_on_where_it_was(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    whole = list(sampler(windows, 6))
    assert list(sampler(windows, 6, start_step=4)) == whole[4 * 6 :]


def test_an_epoch_reads_each_block_once_even_where_a_step_straddles_its_end(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    numbers = sum(sampler(windows, 2 * 3, total_steps=11), [])  # 2 blocks a step, 11 blocks an epoch
    assert sorted(numbers[:33]) == sorted(numbers[33:]) == list(range(33))


def test_steps_that_do_not_divide_are_refused(streams: list[TokenStream]) -> None:
    windows = Windows(streams, 20, BLOCK)
    with pytest.raises(ConfigError, match="whole blocks"):
        sampler(windows, 4)
    with pytest.raises(ConfigError, match="does not divide among 4 ranks"):
        sampler(windows, 6, world_size=4)

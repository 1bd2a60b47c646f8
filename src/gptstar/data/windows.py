"""Windows of `context_length + 1` tokens, cut from blocks, handed out by step.

Blocks are the unit of order and windows divide them, so at every context length the same step reads the same tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gptstar.data.order import blocks_at
from gptstar.data.shards import TokenStream
from gptstar.errors import ConfigError


class Windows(Dataset[Tensor]):
    """Windows of several token streams by number, in the order of the streams.

    Args:
        streams: one a corpus.
        context_length: inputs a window; it divides `block_tokens`.
    """

    def __init__(self, streams: Sequence[TokenStream], context_length: int, block_tokens: int) -> None:
        self.context_length, self.block_tokens = context_length, block_tokens
        self._streams = streams
        # The last target of a block is the first token of the next, so a stream needs one token beyond its blocks.
        self._block_ends = np.cumsum([max(0, len(stream) - 1) // block_tokens for stream in streams])

    @property
    def n_blocks(self) -> int:
        """Whole blocks in all streams."""
        return int(self._block_ends[-1]) if len(self._streams) else 0

    @property
    def windows_per_block(self) -> int:
        """Windows cut from a block."""
        return self.block_tokens // self.context_length

    def __len__(self) -> int:
        return self.n_blocks * self.windows_per_block

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        """`(window, context_length + 1)`, int64; the last target of one window is the first input of the next."""
        out = np.empty((len(numbers), self.context_length + 1), dtype=np.int64)
        for row, number in enumerate(numbers):
            block, part = divmod(int(number), self.windows_per_block)
            corpus = int(np.searchsorted(self._block_ends, block, side="right"))
            first_block = int(self._block_ends[corpus - 1]) if corpus else 0
            start = (block - first_block) * self.block_tokens + part * self.context_length
            out[row] = self._streams[corpus].read(start, self.context_length + 1)
        return torch.from_numpy(out)


class StepSampler(Sampler[list[int]]):
    """Window numbers of one rank's micro-batches, from a step of the run to its end.

    A global batch is the same whatever the number of ranks and the size of micro-batches; each rank reads its slice.

    Args:
        windows: what is numbered.
        sequences_per_step: windows of a global batch; whole blocks.
        micro_batch_size: windows a rank reads at once.
        start_step, total_steps: the run's steps that are read.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        seed: int,
        sequences_per_step: int,
        micro_batch_size: int,
        start_step: int,
        total_steps: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if sequences_per_step % windows.windows_per_block:
            raise ConfigError(f"a step of {sequences_per_step} sequences does not hold whole blocks")
        if sequences_per_step % (world_size * micro_batch_size):
            raise ConfigError(
                f"a step of {sequences_per_step} sequences does not divide among {world_size} ranks "
                f"in micro-batches of {micro_batch_size}: change hardware.micro_batch_size or batch_tokens"
            )
        self.windows, self.seed = windows, seed
        self.sequences_per_step, self.micro_batch_size = sequences_per_step, micro_batch_size
        self.start_step, self.total_steps = start_step, total_steps
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        steps = self.total_steps - self.start_step
        return steps * self.sequences_per_step // (self.world_size * self.micro_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.total_steps):
            batch = self.global_batch(step)
            share = len(batch) // self.world_size
            mine = batch[self.rank * share : (self.rank + 1) * share]
            for start in range(0, share, self.micro_batch_size):
                yield mine[start : start + self.micro_batch_size].tolist()

    def global_batch(self, step: int) -> np.ndarray:
        """`(sequence,)`: the windows that all ranks together read at a step."""
        per_block = self.windows.windows_per_block
        blocks = self.sequences_per_step // per_block
        positions = np.arange(step * blocks, (step + 1) * blocks)
        numbers = blocks_at(positions, self.windows.n_blocks, self.seed)[:, None] * per_block + np.arange(per_block)
        return numbers.reshape(-1)

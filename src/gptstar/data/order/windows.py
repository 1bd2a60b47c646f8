"""Windows of `context_length + 1` tokens, cut from blocks and delivered by step.

Blocks are the unit of the order, and windows divide them. So at every context length, a step reads the same tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gptstar.data.order.mixture import Mixture
from gptstar.data.storage.stream import TokenStream
from gptstar.errors import ConfigError

NO_TARGET = -1
"""Value at the positions of a window beyond the end of its document."""

ONLY_INPUT = -2
"""A token that is an input but not a target is stored in windows as `ONLY_INPUT - token`."""

READ_AT_ONCE = 2**20
"""Tokens."""

BLANK = -1
"""The number of a blank window, which has no target."""


def inputs_of(windows: Tensor) -> Tensor:
    """Return the tokens of windows, whether targets or not; 0 at positions without a token."""
    return torch.where(windows < NO_TARGET, ONLY_INPUT - windows, windows).clamp(min=0)


class DocumentBlocks:
    """The blocks of token streams, if blocks start at documents.

    A document's tokens are its targets. Its first input is the preceding end-of-text: its own, if documents begin with
    one, otherwise that of the previous document. The first document of a stream without a preceding end-of-text begins
    with its first token as input. The document's last block is padded, on average by half a block. So this suits
    documents that are much longer than a block; if most are shorter, most of the computation is wasted.

    Args:
        streams: for each stream, the bounds of its documents, `(document + 1,)`, int64: where each document begins in
            the stream, and where the last one ends.
        end_of_text_first: each document begins with an end-of-text token of its own.
    """

    def __init__(self, streams: Sequence[np.ndarray], block_tokens: int, *, end_of_text_first: bool) -> None:
        self.block_tokens = block_tokens
        self._before = 0 if end_of_text_first else 1
        self._stream_starts = np.cumsum([0, *(each[-1] for each in streams)], dtype=np.int64)
        shifted = [each[:-1] + start for each, start in zip(streams, self._stream_starts, strict=False)]
        # Each document takes two numbers of 8 bytes: its start here, and its first block below.
        self._starts = np.concatenate([*shifted, self._stream_starts[-1:]])
        blocks = [self._blocks(each) for each in streams]
        self.stream_blocks = tuple(int(each.sum()) for each in blocks)
        """Number of blocks of each stream."""
        self._first_blocks = np.cumsum(np.concatenate([np.zeros(1, np.int64), *blocks]), dtype=np.int64)

    def _blocks(self, stream: np.ndarray) -> np.ndarray:
        """Count the blocks of each document of a stream: `(document,)`, int64."""
        first_inputs = np.maximum(stream[:-1] - self._before, 0)
        return -(-(stream[1:] - 1 - first_inputs) // self.block_tokens)

    def starts(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where blocks `(block,)`, numbered through all streams, start, and what remains of their documents.

        Returns:
            Two int64 arrays `(block,)`: the place of the first input in the tokens of all streams, and the number of
            targets that the document has from there on, at least one.
        """
        documents = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        starts = self._starts[documents]
        streams = np.searchsorted(self._stream_starts, starts, side="right") - 1
        first_inputs = np.maximum(starts - self._before, self._stream_starts[streams])
        inputs = first_inputs + (blocks - self._first_blocks[documents]) * self.block_tokens
        return inputs, self._starts[documents + 1] - 1 - inputs


class Windows(Dataset[Tensor]):
    """Windows of several token streams, numbered in the order of the streams.

    Args:
        streams: the streams of a mixture, or of a validation.
        context_length: inputs per window; it divides `block_tokens`.
        documents: the blocks of the same streams, if blocks start at documents. Then every token of every document is a
            target once, except an end-of-text that begins a document and the first token of a stream, which have no
            input before them. Positions beyond the document are `NO_TARGET`. A window without any target is wasted
            computation, so documents should be long and blocks short.
        query_mark: a token; all tokens except the second after it are `ONLY_INPUT`. A mark before the window's start
            has no effect.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        context_length: int,
        block_tokens: int,
        documents: DocumentBlocks | None = None,
        query_mark: int | None = None,
    ) -> None:
        self.context_length, self.block_tokens, self._documents = context_length, block_tokens, documents
        self._query_mark = query_mark
        arrays = [array for stream in streams for array in stream.arrays]
        if documents is not None:
            arrays.append(
                np.zeros(context_length, dtype=np.int64)
            )  # the last document's window may reach beyond the document
        self.tokens = TokenStream(arrays)
        """The tokens of all streams."""
        self._stream_starts = np.cumsum([0, *(len(stream) for stream in streams)], dtype=np.int64)
        # A block's last target is the next block's first token, so a stream needs one token beyond its blocks.
        self.stream_blocks = tuple(max(0, len(stream) - 1) // block_tokens for stream in streams)
        """Number of blocks of each stream; all blocks are full unless blocks start at documents."""
        if documents is not None:
            assert documents.block_tokens == block_tokens
            self.stream_blocks = documents.stream_blocks
        self.n_blocks = sum(self.stream_blocks)
        self.windows_per_block = block_tokens // context_length
        self._block_ends = np.cumsum(self.stream_blocks, dtype=np.int64)
        self._first_blocks = self._block_ends - np.asarray(self.stream_blocks, dtype=np.int64)

    def __len__(self) -> int:
        return self.n_blocks * self.windows_per_block

    @property
    def has_answers(self) -> bool:
        """Whether the query mark occurs; reads the tokens up to the first one."""
        pieces = (
            array[start : start + READ_AT_ONCE]
            for array in self.tokens.arrays
            for start in range(0, len(array), READ_AT_ONCE)
        )
        return any(bool((piece == self._query_mark).any()) for piece in pieces)

    def numbers(self, streams: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Return the window numbers of blocks, given by stream and block: `(block * windows_per_block,)`, int64."""
        first_windows = (self._first_blocks[streams] + blocks) * self.windows_per_block
        return (first_windows[:, None] + np.arange(self.windows_per_block)).reshape(-1)

    def starts(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return where windows begin in `tokens`: `(window,)`, int64."""
        return self._starts_and_targets(numbers)[0]

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        """Read windows `(window, context_length + 1)`, int64; a window's last target is the next window's first input.

        Use `inputs_of` to get their tokens.
        """
        present = np.maximum(np.asarray(numbers, dtype=np.int64), 0)
        starts, left = self._starts_and_targets(present)
        windows = self.tokens.gather(starts, self.context_length + 1)
        if self._query_mark is not None:
            is_target = np.roll(windows == self._query_mark, 2, axis=1)
            is_target[:, :2] = False
            windows = np.where(is_target, windows, ONLY_INPUT - windows)
        if left is not None:
            windows[np.arange(self.context_length + 1) > left[:, None]] = NO_TARGET
        windows[np.asarray(numbers) == BLANK] = NO_TARGET
        return torch.from_numpy(windows)

    def _starts_and_targets(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return where windows begin, and the number of remaining targets in their documents (below 0 beyond the end).

        Both are `(window,)`, int64; the second is None unless blocks start at documents.
        """
        blocks, parts = np.divmod(np.asarray(numbers, dtype=np.int64), self.windows_per_block)
        inside = parts * self.context_length
        if self._documents is not None:
            starts, left = self._documents.starts(blocks)
            return starts + np.minimum(inside, left), left - inside
        streams = np.searchsorted(self._block_ends, blocks, side="right")
        in_stream = (blocks - self._first_blocks[streams]) * self.block_tokens
        return self._stream_starts[streams] + in_stream + inside, None


@dataclass(eq=False)
class StepSampler(Sampler[list[int]]):
    """Yields the window numbers of one rank's micro-batches, from a step of the run to its end.

    A global batch doesn't depend on the number of ranks or the micro-batch size; each rank reads its slice.

    Attributes:
        mixture: the order of the windows' blocks.
        sequences_per_step: windows of a global batch, which must be whole blocks.
        micro_batch_size: number of windows that a rank reads at once.
        start_step, total_steps: the range of steps to read.
    """

    windows: Windows
    mixture: Mixture
    _: KW_ONLY
    seed: int
    sequences_per_step: int
    micro_batch_size: int
    start_step: int
    total_steps: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        windows, sequences_per_step = self.windows, self.sequences_per_step
        assert tuple(entry.n_blocks for entry in self.mixture.entries) == windows.stream_blocks
        if sequences_per_step % windows.windows_per_block:
            raise ConfigError(
                f"a step of {sequences_per_step} sequences is not a whole number of blocks of "
                f"{windows.windows_per_block} sequences: change batch_tokens or data.block_tokens"
            )
        if sequences_per_step % (self.world_size * self.micro_batch_size):
            raise ConfigError(
                f"a step of {sequences_per_step} sequences does not divide among {self.world_size} ranks "
                f"in micro-batches of {self.micro_batch_size}: change hardware.micro_batch_size or batch_tokens"
            )

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
        """Return the numbers of the windows that all ranks together read at a step: `(sequence,)`."""
        blocks = self.sequences_per_step // self.windows.windows_per_block
        positions = np.arange(step * blocks, (step + 1) * blocks)
        return self.windows.numbers(*self.mixture.blocks_at(positions, self.seed))

"""Blocks that start where documents do, for training on long documents as wholes."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from gptstar.data.storage.documents import bounds
from gptstar.data.storage.manifest import Split, Stratum
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import ConfigError


class DocumentBlocks:
    """The blocks of some token streams, counted anew from the start of each document.

    A document's tokens are its targets, and its first input is the end-of-text before it: its own, where documents are
    opened by one, or that of the document before. The first document of a stream that has neither begins with its
    first token as input. Its blocks follow each other from there, and the last one ends where the document does, which
    leaves the rest of it empty: on average half a block a document. So this suits documents that are much longer than
    a block; where most are shorter, most of what is computed is thrown away.

    Args:
        streams: the bounds of each one's documents, `(document + 1,)`, int64: where each begins in the stream, and
            where the last one ends.
        opened: documents begin with an end-of-text of their own.
    """

    def __init__(self, streams: Sequence[np.ndarray], block_tokens: int, *, opened: bool) -> None:
        self.block_tokens = block_tokens
        self._before = 0 if opened else 1
        self._stream_starts = np.cumsum([0, *(each[-1] for each in streams)], dtype=np.int64)
        shifted = [each[:-1] + start for each, start in zip(streams, self._stream_starts, strict=False)]
        # Each document costs two numbers of 8 bytes: the start here, and the first block below.
        self._starts = np.concatenate([*shifted, self._stream_starts[-1:]])
        blocks = [self._blocks(each) for each in streams]
        self.stream_blocks = tuple(int(each.sum()) for each in blocks)
        """Blocks of each stream."""
        self._first_blocks = np.cumsum(np.concatenate([np.zeros(1, np.int64), *blocks]), dtype=np.int64)

    def _blocks(self, stream: np.ndarray) -> np.ndarray:
        """Count the blocks of each document of a stream: `(document,)`, int64."""
        first_inputs = np.maximum(stream[:-1] - self._before, 0)
        return -(-(stream[1:] - 1 - first_inputs) // self.block_tokens)

    def starts(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find where blocks, `(block,)`, numbered through all streams, start, and what is left of their documents.

        Returns:
            Each `(block,)`, int64: the first input in the tokens of all streams, and how many targets the document has
            from there on, at least one.
        """
        documents = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        starts = self._starts[documents]
        streams = np.searchsorted(self._stream_starts, starts, side="right") - 1
        first_inputs = np.maximum(starts - self._before, self._stream_starts[streams])
        inputs = first_inputs + (blocks - self._first_blocks[documents]) * self.block_tokens
        return inputs, self._starts[documents + 1] - 1 - inputs


def document_blocks(
    folder: ShardFolder, split: Split, streams: Sequence[tuple[str, Stratum]], block_tokens: int
) -> DocumentBlocks:
    """Count the blocks of some streams of a folder, given by corpus and stratum.

    Raises:
        ConfigError: the shards are far away.
        DataError: a file of documents is damaged or missing.
    """
    if folder.cache is not None:
        raise ConfigError(
            f"data.windows=documents needs to know where each document of {folder.folder} starts: copy the shards to "
            "this machine, or use data.windows=stream"
        )
    joined = []
    for corpus, stratum in streams:
        shards = folder.shards(split, corpus, stratum)
        *starts, end = accumulate((shard.tokens for shard in shards), initial=0)
        pieces = [bounds(folder, shard)[:-1] + start for shard, start in zip(shards, starts, strict=True)]
        joined.append(np.concatenate([*pieces, np.asarray([end], dtype=np.int64)]))
    return DocumentBlocks(joined, block_tokens, opened=folder.manifest.options.get("end of text") == "both")

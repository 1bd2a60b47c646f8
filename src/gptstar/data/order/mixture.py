"""Mixtures of token streams: a mixture is the permuted union of its streams' blocks.

All blocks of a mixture epoch form one row, stream after stream; a block occurs as often as it is read. The order is a
permutation of that row, which is computed. The row itself is never stored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from gptstar.data.order.permutation import Grouping, blocks_at, permute_runs
from gptstar.data.storage.manifest import Stratum
from gptstar.errors import ConfigError, DataError


@dataclass(frozen=True)
class Entry:
    """A token stream in a mixture: it has `n_blocks` blocks, and `count` blocks are read in a mixture epoch.

    These are `count // n_blocks` passes through all blocks, and one through some of them.
    """

    n_blocks: int
    count: int


@dataclass(frozen=True)
class Mixture:
    """Maps each position of an endless run to a stream and a block of it.

    Attributes:
        entries: one entry per stream, in the order of the streams.
        grouping: None allows any block anywhere in its mixture epoch.
    """

    entries: tuple[Entry, ...]
    grouping: Grouping | None = None

    def __post_init__(self) -> None:
        if not self.n_blocks:
            raise DataError("the training text is shorter than one block of data.block_tokens tokens: add text")

    @classmethod
    def from_epochs(
        cls,
        blocks: Mapping[tuple[str, Stratum], int],
        epochs: Mapping[str, float],
        grouping: Grouping | None = None,
    ) -> "Mixture":
        """Mix corpora, each with its own number of epochs.

        For 2.5 epochs, `first` is read three times and `rest` twice; for 2 epochs, both are read twice.

        Args:
            blocks: number of blocks in each stream, in the order of the streams.
            epochs: epochs of each corpus, above 0.

        Raises:
            DataError: no stream has a block to read.
        """
        entries = []
        for (corpus, stratum), n_blocks in blocks.items():
            rounded = round(epochs[corpus], 9)  # equal to `CorpusConfig.fraction`, which defines the strata
            times = math.ceil(rounded) if stratum == "first" else math.floor(rounded)
            entries.append(Entry(n_blocks, times * n_blocks))
        return cls(tuple(entries), grouping)

    @classmethod
    def from_weights(
        cls,
        blocks: Mapping[str, int],
        weights: Mapping[str, float],
        mixture_tokens: int,
        block_tokens: int,
        grouping: Grouping | None = None,
    ) -> "Mixture":
        """Mix corpora that share a mixture epoch by weight, in whole blocks by the method of the largest remainder.

        Args:
            blocks: number of blocks in each corpus, which is one stream, in the order of the streams.
            weights: weight of each corpus, above 0.
            mixture_tokens: tokens of a mixture epoch, which has `mixture_tokens // block_tokens` blocks.

        Raises:
            DataError: a corpus has no block.
            ConfigError: there are no blocks to share, or a corpus gets none.
        """
        count = mixture_tokens // block_tokens
        if not count:
            raise ConfigError(
                f"data.mixture_tokens={mixture_tokens} is less than one block (data.block_tokens={block_tokens}): "
                "raise it"
            )
        total = sum(Fraction(weights[corpus]) for corpus in blocks)
        shares = {corpus: count * Fraction(weights[corpus]) / total for corpus in blocks}
        counts = {corpus: int(share) for corpus, share in shares.items()}
        by_remainder = sorted(shares, key=lambda corpus: counts[corpus] - shares[corpus])
        for corpus in by_remainder[: count - sum(counts.values())]:
            counts[corpus] += 1
        for corpus, n_blocks in blocks.items():
            if not n_blocks:
                raise DataError(
                    f"data.corpora.{corpus} has a weight, but no block of {block_tokens} tokens to train on: add text "
                    "to it, or leave it out"
                )
            if not counts[corpus]:
                raise ConfigError(
                    f"data.corpora.{corpus}.weight={weights[corpus]:g} comes to less than a block ({block_tokens} "
                    f"tokens) of data.mixture_tokens={mixture_tokens}: raise either, or leave the corpus out"
                )
        return cls(tuple(Entry(blocks[corpus], counts[corpus]) for corpus in blocks), grouping)

    @cached_property
    def n_blocks(self) -> int:
        """Number of blocks of a mixture epoch; a block that is read twice counts twice."""
        return sum(entry.count for entry in self.entries)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([entry.count for entry in self.entries], dtype=np.int64)

    def blocks_at(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the stream and the block in it at each position: both int64 of the shape `(position,)`."""
        positions = np.asarray(positions, dtype=np.int64)
        indices = blocks_at(positions, self.n_blocks, seed, self.grouping)
        streams = np.searchsorted(self._ends, indices, side="right")
        blocks = np.empty_like(indices)
        run = 1 if self.grouping is None else self.grouping.run
        for stream in np.unique(streams).tolist():
            n, count = self.entries[stream].n_blocks, self.entries[stream].count
            here = np.flatnonzero(streams == stream)
            places = indices[here] - (self._ends[stream] - count)
            blocks[here] = places % n
            here = here[places >= count - count % n]  # the partial pass
            # Each mixture epoch continues where the last one stopped, so that all blocks are read in turn.
            turns = (blocks[here] + positions[here] // self.n_blocks % n * (count % n)) % n
            blocks[here] = permute_runs(turns, n, run, f"{seed}/of/{stream}".encode())
        return streams, blocks

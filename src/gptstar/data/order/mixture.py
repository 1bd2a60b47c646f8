"""What a run reads of each token stream, and in which order: a mixture is the permuted union of its streams' blocks.

All blocks of a mixture epoch stand in one row, stream after stream, a block as often as it is read; the order is a
permutation of that row. Nothing of the size of the row is stored.
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
    """A token stream in a mixture: of its `n_blocks` blocks, `count` are read in a mixture epoch.

    That is `count // n_blocks` passes through all of them, and one through some.
    """

    n_blocks: int
    count: int


@dataclass(frozen=True)
class Mixture:
    """Which block of which stream stands at each position of an endless run.

    Attributes:
        entries: one a stream, in the order of the streams.
        grouping: None for any block anywhere in its mixture epoch.
    """

    entries: tuple[Entry, ...]
    grouping: Grouping | None = None

    def __post_init__(self) -> None:
        if not self.n_blocks:
            raise DataError("the data holds no block of data.block_tokens tokens to train on: add text")

    @classmethod
    def from_epochs(
        cls,
        blocks: Mapping[tuple[str, Stratum], int],
        epochs: Mapping[str, float],
        grouping: Grouping | None = None,
    ) -> "Mixture":
        """Mix corpora that are each read for so many epochs.

        For 2.5 epochs, `first` is read three times and `rest` twice; for 2 epochs, both are read twice.

        Args:
            blocks: number of them in each stream, in the order of the streams.
            epochs: above 0, by corpus.

        Raises:
            DataError: there is no block to read.
        """
        entries = []
        for (corpus, stratum), n_blocks in blocks.items():
            rounded = round(epochs[corpus], 9)  # as `CorpusConfig.fraction`, by which the strata are made
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
            blocks: number of them in each corpus, one stream each, in the order of the streams.
            weights: above 0, by corpus.
            mixture_tokens: of a mixture epoch, which has `mixture_tokens // block_tokens` blocks.

        Raises:
            DataError: a corpus has no block.
            ConfigError: there are no blocks to share, or a corpus gets none of them.
        """
        count = mixture_tokens // block_tokens
        if not count:
            raise ConfigError(
                f"data.mixture_tokens={mixture_tokens} is less than a block (data.block_tokens={block_tokens}): "
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
                    f"data.corpora.{corpus} has a weight but no block of {block_tokens} tokens to train on: add text "
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
        """Blocks of a mixture epoch, those that are read twice counted twice."""
        return sum(entry.count for entry in self.entries)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([entry.count for entry in self.entries], dtype=np.int64)

    def blocks_at(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Find at each position, `(position,)`, the stream and the number of the block in it: each like it, int64."""
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
            here = here[places >= count - count % n]  # of the partial pass
            # Each mixture epoch goes on where the last one stopped, so that all blocks get their turn.
            turns = (blocks[here] + positions[here] // self.n_blocks % n * (count % n)) % n
            blocks[here] = permute_runs(turns, n, run, f"{seed}/of/{stream}".encode())
        return streams, blocks

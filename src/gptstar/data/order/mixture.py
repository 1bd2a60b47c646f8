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
        """Corpora that are each read for so many epochs.

        Of 2.5 epochs, `first` is read three times and `rest` twice; of 2 epochs, both are read twice.

        Args:
            blocks: of each stream, by corpus and stratum, in the order of the streams.
            epochs: of each corpus, above 0.

        Raises:
            DataError: there is no block to read.
        """
        entries = []
        for (corpus, stratum), n_blocks in blocks.items():
            wanted = round(epochs[corpus], 9)  # as `CorpusConfig.fraction`, by which the strata are made
            times = math.ceil(wanted) if stratum == "first" else math.floor(wanted)
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
        """Corpora that share a mixture epoch by weight, in whole blocks by the method of the largest remainder.

        Args:
            blocks: of each corpus, one stream each, in the order of the streams.
            weights: of each corpus, above 0.
            mixture_tokens: of a mixture epoch, `mixture_tokens // block_tokens` blocks.

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

    def blocks_at(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Which block stands at each position.

        Args:
            positions: `(position,)`, non-negative integers.

        Returns:
            Number of the stream and number of the block in it, each `(position,)`, int64.
        """
        positions = np.asarray(positions, dtype=np.int64)
        indices = blocks_at(positions, self.n_blocks, seed, self.grouping)
        return self._look_up(indices, positions // self.n_blocks, seed)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([entry.count for entry in self.entries], dtype=np.int64)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.asarray([entry.n_blocks for entry in self.entries], dtype=np.int64)

    @cached_property
    def _whole(self) -> np.ndarray:
        """Of each entry's count, what whole passes make up."""
        return np.asarray([e.count - e.count % e.n_blocks if e.n_blocks else 0 for e in self.entries], dtype=np.int64)

    def _look_up(self, indices: np.ndarray, epochs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Streams and blocks at some indices of the row of a mixture epoch, all `(index,)`."""
        streams = np.searchsorted(self._ends, indices, side="right")
        counts = np.diff(self._ends, prepend=0)
        places = indices - (self._ends - counts)[streams]
        blocks = places % self._sizes[streams]
        partial = places >= self._whole[streams]
        run = 1 if self.grouping is None else self.grouping.run
        for stream in np.unique(streams[partial]).tolist():
            n, count = self.entries[stream].n_blocks, self.entries[stream].count
            here = partial & (streams == stream)
            # Each mixture epoch goes on where the last one stopped, so that all blocks get their turn.
            turns = (blocks[here] + epochs[here] % n * (count % n)) % n
            blocks[here] = permute_runs(turns, n, run, f"{seed}/of/{stream}".encode())
        return streams, blocks

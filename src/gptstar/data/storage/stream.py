"""The tokens of local or remote shards as one sequence."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np


class Tokens(Protocol):
    """One shard's tokens: an array in memory, memory-mapped, or remote."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


class TokenStream:
    """The tokens of several shards, `arrays`, as one sequence."""

    def __init__(self, arrays: Sequence[Tokens]) -> None:
        # Slicing a plain array costs a tenth of slicing a memory map.
        self.arrays = [array.view(np.ndarray) if isinstance(array, np.ndarray) else array for array in arrays]
        lengths = [len(array) for array in arrays]
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self._firsts = (self._ends - lengths).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def spans(self, start: int, count: int) -> Iterator[tuple[Tokens, int, int]]:
        """Yield the spans with tokens `[start, start + count)`: a shard's tokens, the first place, and the number."""
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while count > 0:
            offset = start - self._firsts[shard]
            here = min(count, len(self.arrays[shard]) - offset)
            yield self.arrays[shard], offset, here
            start, count, shard = start + here, count - here, shard + 1

    def read(self, start: int, count: int) -> np.ndarray:
        """Read tokens `[start, start + count)`, int64, across shards if necessary."""
        return self.gather(np.asarray([start]), count)[0]

    def gather(self, starts: np.ndarray, count: int) -> np.ndarray:
        """Read the tokens that follow each of `starts`, `(row,)`: `(row, count)`, int64."""
        shards = np.searchsorted(self._ends, starts, side="right")
        whole = (starts + count <= self._ends[shards]).tolist()
        pieces: list[np.ndarray] = []
        for start, shard, within in zip(starts.tolist(), shards.tolist(), whole, strict=True):
            if within:
                first = start - self._firsts[shard]
                pieces.append(self.arrays[shard][first : first + count])
            else:
                pieces += [tokens[at : at + here] for tokens, at, here in self.spans(start, count)]
        # Joining slices and then converting them is faster than numpy's fancy indexing, and than row by row.
        return np.concatenate(pieces).astype(np.int64).reshape(len(starts), count)

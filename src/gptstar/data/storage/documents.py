"""The documents of a folder of shards: their bounds, lengths, tokens and text."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from gptstar.data.storage.arrays import load_array
from gptstar.data.storage.manifest import AGAIN, Shard, Split
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import DataError, in_one_line


def bounds(folder: ShardFolder, shard: Shard) -> np.ndarray:
    """Return where each document of a shard begins, and where the last one ends: `(document + 1,)`, int64.

    Raises:
        DataError: the file of document starts is damaged, missing or can't be reached; names it.
    """
    name = f"{shard.name}.documents.npy"
    where = f"{folder.folder}/{name}"
    try:
        content = folder.cache.files.read(name) if folder.cache else (Path(folder.folder) / name).read_bytes()
        starts = load_array(io.BytesIO(content))
        if starts.ndim != 1 or starts.dtype.kind not in "iu":
            raise ValueError("not a row of whole numbers")
        starts = starts.astype(np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"{where} can't be read ({in_one_line(error)}): {AGAIN}") from error
    ends = np.append(starts, shard.tokens)
    if len(starts) != shard.documents or ends[0] or (np.diff(ends) < 1).any():
        raise DataError(f"{where} is damaged (it does not cut {shard.tokens:,} tokens into documents): {AGAIN}")
    return ends


def document_tokens(folder: ShardFolder, split: Split, corpus: str) -> Iterator[np.ndarray]:
    """Yield the tokens of each document of a corpus, `(token,)`, in the order of the shards."""
    for shard in folder.shards(split, corpus):
        tokens = folder.tokens(shard)
        for start, end in pairwise(bounds(folder, shard).tolist()):
            yield tokens[start:end]


def documents(folder: ShardFolder, split: Split, corpus: str) -> Iterator[str]:
    """Yield the text of each document of a corpus, in the order of the shards."""
    for tokens in document_tokens(folder, split, corpus):
        yield folder.tokenizer.decode(tokens.tolist())


def document_beginning(folder: ShardFolder, split: Split, corpus: str, number: int, n_tokens: int) -> tuple[str, int]:
    """Return the text of a document's first tokens, and its number of tokens; `number` is its place in `documents`."""
    for shard in folder.shards(split, corpus):
        if number < shard.documents:
            start, end = bounds(folder, shard)[number : number + 2].tolist()
            tokens = folder.tokens(shard)[start : min(start + n_tokens, end)]
            return folder.tokenizer.decode(tokens.tolist()), end - start
        number -= shard.documents
    raise IndexError(number)


@dataclass(frozen=True)
class Lengths:
    """The distribution of document lengths.

    In 10^12 tokens there are at most 1.4 million distinct lengths, whatever the number of documents.

    Attributes:
        values: distinct lengths in tokens, ascending, `(length,)`, int64.
        counts: number of documents of each length, `(length,)`, int64.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, folder: ShardFolder, split: Split, corpus: str) -> "Lengths":
        """Count the lengths of a corpus's documents, shard by shard."""
        return cls.between(bounds(folder, shard) for shard in folder.shards(split, corpus))

    @classmethod
    def between(cls, bounds: Iterable[np.ndarray]) -> "Lengths":
        """Count the lengths of documents given by their bounds, each `(document + 1,)`."""
        counter: Counter[int] = Counter()
        for ends in bounds:
            values, counts = np.unique(np.diff(ends), return_counts=True)
            counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        lengths = sorted(counter)
        return cls(np.asarray(lengths, np.int64), np.asarray([counter[length] for length in lengths], np.int64))

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of the documents does not exceed."""
        ends = np.cumsum(self.counts)
        return int(self.values[min(np.searchsorted(ends, share * ends[-1]), len(ends) - 1)])

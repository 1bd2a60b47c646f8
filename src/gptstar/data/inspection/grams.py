"""Runs of 13 words of benchmark items, indexed so that text can be held against them at megabytes a second."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from gptstar.data.inspection.benchmark_items import Benchmark
from gptstar.data.inspection.words import words
from gptstar.errors import DataError

GRAM_WORDS = 13
CHUNK_CHARACTERS = 2**18  # whose words are held at once
MULTIPLIERS = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95, 0xAF251AF3B0F025B5
"""Of the rolling hash: the first that tells all grams of the benchmarks apart."""
TABLE_BITS = 23
SPACE = re.compile(r"\s")

Item = tuple[str, int]
"""A benchmark's name, and the row of its file, from 0."""


class GramIndex:
    """The grams of some benchmarks, to look for in text. Pickled, it is as large as its arrays.

    Attributes:
        benchmarks: name and number of items.
        grams: `(item,)`, how many grams each item has, over all benchmarks; 0 where it is too short to be tested.
    """

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        """Index the benchmarks.

        Raises:
            DataError: two have the same name.
        """
        self.benchmarks = {benchmark.name: len(benchmark.items) for benchmark in benchmarks}
        if len(self.benchmarks) < len(benchmarks):
            raise DataError(f"two benchmarks share a name: {', '.join(b.name for b in benchmarks)}; rename a file")
        self._vocabulary: dict[str, int] = {}
        numbers: list[int] = []  # of the words; 0 ends a text
        lengths = []  # of the items, in words
        for item in (item for benchmark in benchmarks for item in benchmark.items):
            before = len(numbers)
            for text in item:
                numbers += [self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in words(text)]
                numbers.append(0)
            lengths.append(len(numbers) - before)
        self._words = np.asarray(numbers, dtype=np.int32)
        for self._multiplier in MULTIPLIERS:
            starts, hashes = self._windows(self._words)
            self._hashes, first, gram = np.unique(hashes, return_index=True, return_inverse=True)
            self._starts = starts[first]
            if self._same(self._starts[gram], self._words, starts).all():
                break
        else:
            raise AssertionError("no multiplier tells the grams apart")
        # pairs of a gram and an item that has it, each once, in the order of the grams
        item = np.repeat(np.arange(len(lengths)), lengths)[starts]
        pairs = np.unique(gram.astype(np.int64) * len(lengths) + item)
        self._pairs = np.stack(np.divmod(pairs, max(1, len(lengths)))).astype(np.int32)
        self.grams = np.bincount(self._pairs[1], minlength=len(lengths))

    @classmethod
    def from_files(cls, paths: Iterable[Path]) -> "GramIndex":
        """Index some benchmark files.

        Raises:
            DataError: see `Benchmark.from_file`.
        """
        return cls([Benchmark.from_file(path) for path in paths])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def hits(self, text: str) -> set[Item]:
        """The items that share a gram with a whole document."""
        _, items = self.pairs(np.concatenate([np.zeros(0, dtype=np.int64), *self.find(text)]))
        return set(map(self.item, items.tolist()))

    def shares_a_gram(self, text: str) -> bool:
        """Whether any item shares a gram with a document."""
        return any(len(grams) for grams in self.find(text))

    def find(self, text: str) -> Iterator[np.ndarray]:
        """`(hit,)`, the numbers of the benchmarks' grams in a document: for each stretch of it, in their order."""
        before = np.zeros(0, dtype=np.int32)
        done = 0
        while done < len(text):
            space = SPACE.search(text, done + CHUNK_CHARACTERS)
            end = space.start() if space else len(text)
            these = words(text[done:end])
            new = np.fromiter(map(self._vocabulary.get, these, repeat(0)), dtype=np.int32, count=len(these))
            numbers = np.concatenate([before, new])
            starts, hashes = self._windows(numbers)
            likely = self._table[hashes >> np.uint64(64 - TABLE_BITS)]
            starts, hashes = starts[likely], hashes[likely]
            grams = np.minimum(np.searchsorted(self._hashes, hashes), max(0, len(self._hashes) - 1))
            yield grams[self._same(self._starts[grams], numbers, starts)]
            before = numbers[len(numbers) - min(len(numbers), GRAM_WORDS - 1) :]
            done = end

    def pairs(self, grams: np.ndarray) -> np.ndarray:
        """`(2, pair)`: each of some grams, `(gram,)`, with each item that has it."""
        wanted = np.zeros(len(self._hashes), dtype=bool)
        wanted[grams] = True
        return self._pairs[:, wanted[self._pairs[0]]]

    def item(self, number: int) -> Item:
        """Benchmark and row of an item, by its number over all benchmarks."""
        for name, n_items in self.benchmarks.items():
            if number < n_items:
                return name, number
            number -= n_items
        raise IndexError(number)

    def gram_text(self, gram: int) -> str:
        """The words of a gram."""
        start = int(self._starts[gram])
        names = list(self._vocabulary)  # in the order of their numbers, from 1
        return " ".join(names[number - 1] for number in self._words[start : start + GRAM_WORDS].tolist())

    @cached_property
    def _table(self) -> np.ndarray:
        """For the first bits of a hash, whether a gram has them: most windows of a text need no search."""
        table = np.zeros(2**TABLE_BITS, dtype=bool)
        table[self._hashes >> np.uint64(64 - TABLE_BITS)] = True
        return table

    def _windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where 13 known words begin in `(word,)`, and their hashes: both `(window,)`."""
        count = len(numbers) - GRAM_WORDS + 1
        if count < 1:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        values, multiplier = numbers.astype(np.uint64), np.uint64(self._multiplier)
        hashes = values[:count].copy()
        for k in range(1, GRAM_WORDS):
            hashes *= multiplier
            hashes += values[k : k + count]
        unknown = np.concatenate([[0], np.cumsum(numbers == 0)])
        starts = np.flatnonzero(unknown[GRAM_WORDS:] == unknown[:count])
        return starts, hashes[starts]

    def _same(self, own: np.ndarray, numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """`(pair,)`: whether the grams at `own` among this index's words are those at `starts` of other words."""
        same = np.ones(len(starts), dtype=bool)
        for k in range(GRAM_WORDS):
            same &= self._words[own + k] == numbers[starts + k]
        return same

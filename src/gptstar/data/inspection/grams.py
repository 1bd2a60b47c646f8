"""An index of runs of 13 words (grams) in benchmark items, for searching text at megabytes per second."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gptstar.data.inspection.benchmark_items import Benchmark
from gptstar.errors import DataError

GRAM_WORDS = 13
GRAM = np.dtype((np.void, 4 * GRAM_WORDS))
"""The numbers of a gram's words, int32, as one value, so that grams can be sorted and compared."""
CHUNK_CHARACTERS = 2**18  # of the document whose words are held at once
SPACE = re.compile(r"\s")
WORD = re.compile(r"[^\W_]+")

Item = tuple[str, int]
"""A benchmark's name, and a row of its file, counted from 0."""


class GramIndex:
    """The grams of benchmarks, to search for in text.

    Attributes:
        benchmarks: name and number of items of each benchmark.
        grams: number of grams of each item of all benchmarks, `(item,)`; 0 if an item is too short to test.
    """

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        """Index the benchmarks; raise DataError if two have the same name."""
        self.benchmarks = {benchmark.name: len(benchmark.items) for benchmark in benchmarks}
        if len(self.benchmarks) < len(benchmarks):
            raise DataError(
                f"two benchmarks share a name: {', '.join(b.name for b in benchmarks)}; rename one of the files"
            )
        self._vocabulary: dict[str, int] = {}
        numbers: list[int] = []  # of the words; 0 ends a text
        lengths = []  # of the items, in words
        for item in (item for benchmark in benchmarks for item in benchmark.items):
            before = len(numbers)
            for text in item:
                numbers += [self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in words(text)]
                numbers.append(0)
            lengths.append(len(numbers) - before)
        starts, grams = _grams(np.asarray(numbers, dtype=np.int32))
        self._grams, gram = np.unique(grams, return_inverse=True)
        # distinct pairs of a gram and an item with it, in the order of the grams
        item = np.repeat(np.arange(len(lengths)), lengths)[starts]
        pairs = np.unique(gram.astype(np.int64) * len(lengths) + item)
        self._pairs = np.stack(np.divmod(pairs, max(1, len(lengths)))).astype(np.int32)
        self.grams = np.bincount(self._pairs[1], minlength=len(lengths))

    def shares_a_gram(self, text: str) -> bool:
        """Return whether any item shares a gram with a document."""
        return any(len(grams) for grams in self.find(text))

    def find(self, text: str) -> Iterator[np.ndarray]:
        """Yield the numbers of the grams found in a document, `(hit,)`, in order, chunk by chunk."""
        before = np.zeros(0, dtype=np.int32)
        done = 0
        while done < len(text):
            space = SPACE.search(text, done + CHUNK_CHARACTERS)
            end = space.start() if space else len(text)
            these = words(text[done:end])
            new = np.fromiter(map(self._vocabulary.get, these, repeat(0)), dtype=np.int32, count=len(these))
            numbers = np.concatenate([before, new])
            _, grams = _grams(numbers)
            places = np.searchsorted(self._grams, grams).clip(max=max(0, len(self._grams) - 1))
            yield places[self._grams[places] == grams] if len(self._grams) else places[:0]
            before = numbers[len(numbers) - min(len(numbers), GRAM_WORDS - 1) :]
            done = end

    def pairs(self, grams: np.ndarray) -> np.ndarray:
        """Return all pairs of a gram in `(gram,)` and an item that contains it: `(2, pair)`."""
        is_given = np.zeros(len(self._grams), dtype=bool)
        is_given[grams] = True
        return self._pairs[:, is_given[self._pairs[0]]]

    def item(self, number: int) -> Item:
        """Return the benchmark and the row of an item, given its number over all benchmarks."""
        for name, n_items in self.benchmarks.items():
            if number < n_items:
                return name, number
            number -= n_items
        raise IndexError(number)

    def gram_text(self, gram: int) -> str:
        """Join the words of a gram."""
        names = list(self._vocabulary)  # in the order of their numbers, which start at 1
        return " ".join(names[number - 1] for number in np.frombuffer(self._grams[gram], dtype=np.int32))


def _grams(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find runs of 13 known words in `(word,)`: return where they begin, and their grams, both `(gram,)`."""
    if len(numbers) < GRAM_WORDS:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=GRAM)
    windows = sliding_window_view(numbers, GRAM_WORDS)
    starts = np.flatnonzero((windows != 0).all(axis=1))
    return starts, np.ascontiguousarray(windows[starts]).view(GRAM)[:, 0]


def words(text: str) -> list[str]:
    """Split a text into runs of letters and digits, in lower case and after Unicode's NFKC.

    So `don’t`, `don't` and the tokenised `don 't` are the same two words, and `_emphasis_` is one.
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())

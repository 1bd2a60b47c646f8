"""Text for associative recall: pairs of a key and a value, filler, and queries whose answers are the values.

A document is `k v … k v … ? k v …`: key-value pairs in any order among filler, and after all of them queries, in
another order. Nothing but the pairs tells the answer, so a model has to look it up in its context.

Source: Arora et al., "Zoology: measuring and improving recall in efficient language models", 2023 (2312.04927), section
3. Theirs has no mark before a query; ours has one, so that the loss can be restricted to answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase, ascii_uppercase
from typing import Literal

import numpy as np

from gptstar.data.text.sources import SOURCES, Source
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.fields import Count, NotNegative, check_ranges

N_KEYS = 32
WORDS_PER_PAIR, WORDS_PER_QUERY = 2, 3
BYTE_TOKENS = 257
"""The vocabulary size of the tokenizer that has only the 256 bytes and end-of-text."""


@dataclass(frozen=True)
class Lexicon:
    """The words of a recall text. Each is one token, and no two are alike.

    Attributes:
        keys, values: the words for keys and for values.
        filler: the words between pairs.
        mark: the word before the key of a query.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    filler: tuple[str, ...]
    mark: str


SYMBOLS = Lexicon(tuple(f"{ascii_uppercase}012345"), tuple(f"{ascii_lowercase}6789+-"), tuple(".,;:!'()[]{}<>/="), "?")
"""Single characters."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(f" {word}" for word in text.split())


ENGLISH = Lexicon(
    _words(
        "water house school city book door table river horse tree market road garden ship church bridge king doctor "
        "mother friend army window field mountain paper stone fire music letter fish captain island"
    ),
    _words(
        "red green black white gold silver north south east west one two three four five six seven eight nine ten "
        "summer winter spring morning evening night France England London Paris Rome Spain"
    ),
    _words("and then also so but now there here still again of the in on at by"),
    " ?",
)
"""Common words with the space before them: each is a token of most tokenizers of English."""


@SOURCES.register("recall")
@dataclass(frozen=True)
class Recall(Source):
    """Documents of associative recall, each a function of the seed and its number.

    Attributes:
        length: the number of words and marks in a document, including the end-of-text after it.
        n_documents: the number of documents.
        fewest_pairs, most_pairs: the limits of the number of pairs in a document.
        queries: the number of queries in a document, each for a random pair; more queries teach more per step. None:
            one for each pair.
        words: `symbols`, single characters with their own tokenizer, or `english`, common words to mix into
            English text.
        seed: the seed of the documents.
    """

    length: Count = 128
    n_documents: Count = 65_536
    fewest_pairs: Count = 4
    most_pairs: Count = 8
    queries: Count | None = None
    words: Literal["symbols", "english"] = "symbols"
    seed: NotNegative = 0

    def __post_init__(self) -> None:
        key = "data.corpora.*.source."
        check_ranges(self, key)
        if not self.fewest_pairs <= self.most_pairs <= N_KEYS:
            raise ConfigError(
                f"{key}most_pairs={self.most_pairs} is not between {key}fewest_pairs={self.fewest_pairs} and the "
                f"{N_KEYS} keys there are: give a number between"
            )
        least = WORDS_PER_PAIR * self.most_pairs + WORDS_PER_QUERY * (self.queries or self.most_pairs)
        if self.length <= least:
            raise ConfigError(
                f"{key}length={self.length} has no room for {key}most_pairs={self.most_pairs}, whose pairs and queries "
                f"are {least} words, and the end-of-text: give {least + 1} or more, or fewer pairs or queries"
            )

    @property
    def lexicon(self) -> Lexicon:
        """The words that documents are made of."""
        return SYMBOLS if self.words == "symbols" else ENGLISH

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of single bytes, for symbols only."""
        return own_tokenizer() if self.words == "symbols" else None

    @property
    def size(self) -> int:
        """The approximate number of bytes of text."""
        return self.n_documents * self.length * (1 if self.words == "symbols" else 5)

    def documents(self, part: int) -> Iterator[str]:
        """Yield each document."""
        assert part == 0
        for number in range(self.n_documents):
            random = np.random.default_rng((self.seed, number))
            n_pairs = int(random.integers(self.fewest_pairs, self.most_pairs + 1))
            keys, values = draw_pairs(random, self.lexicon, n_pairs)
            asked = random.integers(n_pairs, size=self.queries) if self.queries else random.permutation(n_pairs)
            parts = [[key, value] for key, value in zip(keys, values, strict=True)]
            parts += [[self.lexicon.mark, keys[each], values[each]] for each in asked]
            yield "".join(among_filler(random, self.lexicon, parts, self.length - 1))


def draw_pairs(random: np.random.Generator, lexicon: Lexicon, n_pairs: int) -> tuple[list[str], list[str]]:
    """Draw keys that all differ, and values that all differ."""
    keys, values = (random.choice(len(each), n_pairs, replace=False) for each in (lexicon.keys, lexicon.values))
    return [lexicon.keys[each] for each in keys], [lexicon.values[each] for each in values]


def among_filler(
    random: np.random.Generator, lexicon: Lexicon, parts: Sequence[Sequence[str]], n_words: int
) -> list[str]:
    """Put parts, in their order, at random places among filler, `n_words` in all."""
    n_filler = n_words - sum(map(len, parts))
    filler = [lexicon.filler[each] for each in random.integers(len(lexicon.filler), size=n_filler)]
    text, start = list[str](), 0
    for part, end in zip(parts, np.sort(random.integers(n_filler + 1, size=len(parts))).tolist(), strict=True):
        text += [*filler[start:end], *part]
        start = end
    return text + filler[start:]


def own_tokenizer() -> Tokenizer:
    """Make the tokenizer of `SYMBOLS`: a token for each byte, and end-of-text."""
    return Tokenizer.train((), BYTE_TOKENS)

"""Texts that end in a question, whose answer is the next token."""

from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np

from gptstar.data.text.recall import ENGLISH, SYMBOLS, Lexicon, among_filler, draw_pairs, own_tokenizer
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.recall.config import least_length

HAYSTACK = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE, AGAIN, PROMPT = " The pass key is", ". Remember it.", " What is the pass key? The pass key is"
"""The sentences of the passkey test of Mohtashami & Jaggi, "Landmark attention", 2023 (2305.16300), section 4.2. Ours
asks for a word, because a number has several tokens."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Texts of one length, each with its answer.

    Attributes:
        tokens: `(item, position)`, int64; each text begins with end-of-text.
        answers: `(item,)`, int64: the index of the right candidate.
        candidates: `(candidate,)`, int64: the tokens of the possible answers.
    """

    tokens: np.ndarray
    answers: np.ndarray
    candidates: np.ndarray


def lexicon_for(tokenizer: Tokenizer) -> Lexicon:
    """Return the words for questions to a model with this tokenizer: symbols, or English words of one token each."""
    if tokenizer.fingerprint == own_tokenizer().fingerprint:
        return SYMBOLS
    keys, values, filler = (_single(tokenizer, each) for each in (ENGLISH.keys, ENGLISH.values, ENGLISH.filler))
    mark = ENGLISH.mark if _single(tokenizer, (ENGLISH.mark,)) else ENGLISH.mark.strip()
    return replace(ENGLISH, keys=keys, values=values, filler=filler, mark=mark)


def _single(tokenizer: Tokenizer, words: tuple[str, ...]) -> tuple[str, ...]:
    encoded = zip(words, tokenizer.encode(words), strict=True)
    return tuple(word for word, tokens in encoded if len(tokens) == 1)


def check_words(lexicon: Lexicon, n_pairs: int, name: str) -> None:
    """Raise a ConfigError if there are fewer words than pairs, or no filler; it names the model, `name`."""
    n_words = min(len(lexicon.keys), len(lexicon.values))
    if n_words < n_pairs or not lexicon.filler:
        raise ConfigError(
            f"{name}: only {n_words} of the common words that recall asks for are one token of its tokenizer, and "
            f"{n_pairs} pairs need as many: give a lower evaluation.pairs"
        )


@dataclass(frozen=True)
class PairQuestions:
    """Asks for the value of one of several keys.

    Attributes:
        seed: the seed of the texts; item `n` has the same pairs at every length and depth.
    """

    tokenizer: Tokenizer
    lexicon: Lexicon
    seed: int

    @property
    def most_pairs(self) -> int:
        """The largest number of pairs for which there are words."""
        return min(len(self.lexicon.keys), len(self.lexicon.values))

    def at(self, depth: float | None, n_pairs: int, length: int, n_items: int) -> Questions:
        """Compose texts of `length` tokens; a depth of None means a random one for each item.

        Raises:
            ConfigError: the texts are too short for the pairs.
        """
        if length < least_length(n_pairs):
            raise ConfigError(
                f"{n_pairs} pairs and a query need {least_length(n_pairs)} tokens, and the shortest text has {length}: "
                "give lower evaluation.pairs"
            )
        words = [*self.lexicon.keys, *self.lexicon.values, *self.lexicon.filler, self.lexicon.mark]
        number = dict(zip(words, np.concatenate(self.tokenizer.encode(words)).tolist(), strict=True))
        texts, answers = [], []
        for item in range(n_items):
            random = np.random.default_rng((self.seed, item))
            text, answer = pair_question(random, self.lexicon, n_pairs, length - 1, depth)
            texts.append([self.tokenizer.end_of_text, *(number[word] for word in text)])
            answers.append(self.lexicon.values.index(answer))
        candidates = np.asarray([number[word] for word in self.lexicon.values], dtype=np.int64)
        return Questions(np.asarray(texts, dtype=np.int64), np.asarray(answers, dtype=np.int64), candidates)


def pair_question(
    random: np.random.Generator, lexicon: Lexicon, n_pairs: int, n_words: int, depth: float | None
) -> tuple[list[str], str]:
    """Compose a text of `n_words` words that ends in a query, and its answer.

    The queried pair begins at the share `depth` of the way from its first possible place to its last, or one word later
    if it would split another pair. The other pairs have random places.
    """
    keys, values = draw_pairs(random, lexicon, n_pairs)
    depth = float(random.random()) if depth is None else depth
    others = [[key, value] for key, value in zip(keys[1:], values[1:], strict=True)]
    text = among_filler(random, lexicon, others, n_words - 4)
    place = round(depth * len(text))
    place += place > 0 and text[place - 1] in keys
    return [*text[:place], keys[0], values[0], *text[place:], lexicon.mark, keys[0]], values[0]


@dataclass(frozen=True)
class PasskeyQuestions:
    """Asks for a word that one sentence names among many irrelevant sentences."""

    tokenizer: Tokenizer
    lexicon: Lexicon

    @property
    def least_length(self) -> int:
        """The length of a text without irrelevant sentences, in tokens."""
        return 2 + sum(map(len, self.tokenizer.encode([NEEDLE, AGAIN, PROMPT])))

    def at(self, depth: float, length: int) -> Questions:
        """Compose a text of `length` tokens for each word, placed between the sentences nearest to the depth."""
        sentences = [f"{each}." for each in HAYSTACK.split(".") if each]
        needle, again, prompt, *hay = self.tokenizer.encode([NEEDLE, AGAIN, PROMPT, *sentences])
        n_hay = length - self.least_length
        ends = np.cumsum([0, *(len(sentence) for sentence in islice(cycle(hay), n_hay))])
        ends = ends[ends <= n_hay]
        haystack = np.resize(np.concatenate(hay), n_hay)  # repeated
        place = int(ends[np.abs(ends - depth * n_hay).argmin()])
        words = self.lexicon.keys
        candidates = np.concatenate(self.tokenizer.encode(words))
        start = np.asarray([self.tokenizer.end_of_text])
        texts = [
            np.concatenate([start, haystack[:place], needle, [word], again, haystack[place:], prompt])
            for word in candidates
        ]
        return Questions(np.stack(texts), np.arange(len(words)), candidates)

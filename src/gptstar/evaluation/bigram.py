"""The baseline: an interpolated Kneser-Ney bigram model of the same training tokens."""

import math

import numpy as np

from gptstar.data.storage.shards import ShardFolder

DISCOUNT = 0.75


class Bigram:
    """A bigram model: `P(w | v) = max(c(vw) - D, 0) / c(v) + D n(v) / c(v) P_continuation(w)`.

    `c` counts occurrences, and `n(v)` is the number of different tokens after `v`. `P_continuation(w)` is proportional
    to the number of different tokens before `w` plus one, so that no token has probability 0.

    Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques", 1999, section 2.7.
    """

    def __init__(self, tokens: np.ndarray, n_vocab: int) -> None:
        """Count the pairs of neighbouring tokens in a text `(token,)`."""
        self._n_vocab = n_vocab
        pairs, self._counts = np.unique(tokens[:-1] * n_vocab + tokens[1:], return_counts=True)
        self._pairs = pairs
        self._followed = np.bincount(tokens[:-1], minlength=n_vocab)
        self._followers = np.bincount(pairs // n_vocab, minlength=n_vocab)
        preceders = np.bincount(pairs % n_vocab, minlength=n_vocab) + 1.0
        self._continuation = preceders / preceders.sum()

    def loss(self, tokens: np.ndarray) -> float:
        """Return the mean loss in nats per token of a text `(token,)`, from its second token on."""
        before, after = tokens[:-1], tokens[1:]
        pairs = before * self._n_vocab + after
        place = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        count = np.where(self._pairs[place] == pairs, self._counts[place], 0)
        total = np.maximum(self._followed[before], 1)
        backed_off = np.where(self._followed[before] > 0, DISCOUNT * self._followers[before] / total, 1.0)
        probability = np.maximum(count - DISCOUNT, 0) / total + backed_off * self._continuation[after]
        return float(-np.log(probability).mean())


def bigram_loss(folder: ShardFolder, max_tokens: int, counted: int | None = None) -> float:
    """Return the held-out loss of a bigram model in nats per token.

    Args:
        folder: the shards with training and held-out text.
        max_tokens: the most held-out tokens of each corpus.
        counted: the most training tokens to count, of each corpus in proportion to its size; None for all.
    """
    train = [folder.stream("train", name) for name in folder.corpora("train")]
    held_out = [folder.stream("validation", name) for name in folder.corpora("validation")]
    total = sum(len(stream) for stream in train)
    share = 1.0 if counted is None else min(1.0, counted / max(1, total))
    tokens = np.concatenate([stream.read(0, math.ceil(share * len(stream))) for stream in train])
    bigram = Bigram(tokens, folder.manifest.n_vocab)
    return bigram.loss(np.concatenate([stream.read(0, min(len(stream), max_tokens)) for stream in held_out]))

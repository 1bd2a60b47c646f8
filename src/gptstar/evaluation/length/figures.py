"""Figures of a study with intervals, by context length and by position in the window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gptstar.evaluation.length.protocols import Window
from gptstar.evaluation.statistics.intervals import Interval, ratio_interval
from gptstar.evaluation.statistics.paired import Paired, paired_ratio

LEAST_DOCUMENTS = 10
"""With fewer documents, stretches of text are the independent units."""


@dataclass(frozen=True)
class LengthResult:
    """The figures of one context length.

    Attributes:
        tokens: the number of scored targets.
        bytes: the bytes of text of these targets; None if the tokenizer does not tell.
        mean_context: tokens before a target, on average: less than the length where documents or windows are short.
        loss: nats a token; None if the model is undefined at this length, and so are all figures after it.
        change: the loss less that at the reference length, on the same targets.
        seconds: the time of reading.
        memory: the peak memory in bytes.
        read: the number of tokens that the model read.
        sums: `(unit,)`: the loss of each independent unit of text, in nats, by which two models are paired; empty where
            there are no intervals.
        key_loss: the loss of the key tokens; None without a judge, or where it finds none.
    """

    context_length: int
    tokens: int
    bytes: int | None
    mean_context: float
    loss: Interval | None = None
    perplexity: Interval | None = None
    bits_per_byte: Interval | None = None
    change: Paired | None = None
    seconds: float | None = None
    memory: int | None = None
    read: int | None = None
    sums: tuple[float, ...] = ()
    key_loss: Interval | None = None


@dataclass(frozen=True)
class PositionResult:
    """Loss of the targets that have from `first` to `last` tokens before them, at the longest context."""

    first: int
    last: int
    tokens: int
    loss: Interval


class Units:
    """Independent units of text that targets belong to, for intervals.

    Attributes:
        name: `documents`, or `stretches` as long as the longest context if there are few documents.
        numbers: `(target,)`: the unit of each target.
    """

    def __init__(self, spans: Sequence[Window], longest: int) -> None:
        documents = np.concatenate([np.full(span.size, span.document) for span in spans])
        self.name = "documents"
        if len(np.unique(documents)) < LEAST_DOCUMENTS:
            self.name = "stretches"
            parts = np.concatenate([(span.start + np.arange(span.size)) // longest for span in spans])
            documents = documents * (parts.max() + 1) + parts
        self.numbers = np.unique(documents, return_inverse=True)[1]
        self.count = int(self.numbers.max()) + 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum values by unit: `(target,)` → `(unit,)`, float64."""
        return np.bincount(self.numbers, values.astype(np.float64), minlength=self.count)

    def interval(self, numerators: np.ndarray, denominators: np.ndarray, seed: int) -> Interval:
        """Estimate a ratio of sums over `(unit,)`; units with a denominator of 0 don't count."""
        counted = denominators > 0
        interval = ratio_interval(numerators[counted], denominators[counted], seed=seed)
        return replace(interval, method=self._with_name(interval.method))

    def change(self, before: np.ndarray, after: np.ndarray, denominators: np.ndarray, seed: int) -> Paired:
        """Estimate the change of a ratio between two readings of the same targets, from their sums."""
        change = paired_ratio(before, after, denominators, seed=seed)
        return replace(change, test=self._with_name(change.test))

    def _with_name(self, method: str) -> str:
        before, over, _ = method.partition(" over ")
        return f"{before}{over}{self.name}" if over else method


def perplexity_of(loss: Interval) -> Interval:
    """Convert a loss in nats per token to a perplexity."""
    value, low, high = (math.exp(each) if each < 700 else math.inf for each in (loss.value, loss.low, loss.high))
    return replace(loss, value=value, low=low, high=high)


def contexts(windows: Sequence[Window], n_targets: int) -> np.ndarray:
    """Count the tokens that are read before each target: `(target,)`, int64."""
    before = np.zeros(n_targets, dtype=np.int64)
    for window in windows:
        before[window.at : window.at + window.scored] = np.arange(window.size - window.scored, window.size) + 1
    return before


def by_position(losses: np.ndarray, before: np.ndarray, units: Units, seed: int) -> list[PositionResult]:
    """Return the loss by the number of tokens before a target, in bins that end at powers of two.

    `losses` at one context length and `before`, as `contexts` gives it, are `(target,)`.
    """
    results = []
    most = int(before.max())
    for power in range((most - 1).bit_length() + 1):
        first, last = 2**power // 2 + 1, min(2**power, most)  # 1, 2, 3 to 4, 5 to 8, …
        inside = (before >= first) & (before <= last)
        if inside.any():
            sums, counts = units.sums(np.where(inside, losses, 0.0)), units.sums(inside)
            results.append(PositionResult(first, last, int(inside.sum()), units.interval(sums, counts, seed)))
    return results

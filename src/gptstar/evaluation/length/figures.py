"""What the losses of a study come to: figures with intervals, by context length and by position in the window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gptstar.evaluation.length.protocols import Span, Window
from gptstar.evaluation.length.text import Text
from gptstar.evaluation.statistics.intervals import Interval, ratio_interval
from gptstar.evaluation.statistics.paired import Paired, paired_ratio

LEAST_DOCUMENTS = 10
"""Below this, stretches of text stand for independent units in place of documents."""


@dataclass(frozen=True)
class LengthResult:
    """What was found at one context length.

    Attributes:
        tokens: targets scored.
        bytes: of text that they stand for; None where the tokenizer does not tell.
        mean_context: tokens before a target, on average: less than the length where documents or windows are short.
        loss: nats a token; None where the model is undefined at this length, and so are the next three.
        perplexity: exp of the loss.
        bits_per_byte: what compares models with different tokenizers.
        change: of the loss, against the reference length on the same targets.
        seconds: that reading took.
        memory: bytes, the most that was held at once.
        read: tokens that went through the model.
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
        name: `documents`, or `stretches` as long as the longest context where there are few documents.
        numbers: `(target,)`: the unit of each.
    """

    def __init__(self, spans: Sequence[Span], longest: int) -> None:
        documents = np.concatenate([np.full(span.count, span.document) for span in spans])
        self.name = "documents"
        if len(np.unique(documents)) < LEAST_DOCUMENTS:
            self.name = "stretches"
            parts = np.concatenate([(span.start + np.arange(span.count)) // longest for span in spans])
            documents = documents * (parts.max() + 1) + parts
        self.numbers = np.unique(documents, return_inverse=True)[1]
        self.count = int(self.numbers.max()) + 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """`(target,)` → `(unit,)`, float64."""
        return np.bincount(self.numbers, values.astype(np.float64), minlength=self.count)

    def interval(self, numerators: np.ndarray, denominators: np.ndarray, seed: int) -> Interval:
        """Of a ratio of sums over `(unit,)`; units without any denominator don't count."""
        there = denominators > 0
        found = ratio_interval(numerators[there], denominators[there], seed=seed)
        return replace(found, method=self._named(found.method))

    def change(self, before: np.ndarray, after: np.ndarray, denominators: np.ndarray, seed: int) -> Paired:
        """Of a ratio, from the sums of one reading to another's of the same targets, unit by unit."""
        found = paired_ratio(before, after, denominators, seed=seed)
        return replace(found, test=self._named(found.test))

    def _named(self, method: str) -> str:
        before, over, _ = method.partition(" over ")
        return f"{before}{over}{self.name}" if over else method


def with_figures(
    result: LengthResult, sums: np.ndarray, reference: np.ndarray | None, sizes: np.ndarray, units: Units, seed: int
) -> LengthResult:
    """A result with its figures.

    Args:
        sums: `(unit,)`: of the losses at this length, in nats.
        reference: `(unit,)`: at the length that changes are against, or None where there is nothing to compare with.
        sizes: `(target,)`: bytes of text behind each target.
    """
    counts = units.sums(np.ones(result.tokens))
    loss = units.interval(sums, counts, seed)
    bits = units.interval(sums / math.log(2), units.sums(sizes), seed) if result.bytes else None
    change = None if reference is None or reference is sums else units.change(reference, sums, counts, seed)
    return replace(result, loss=loss, perplexity=perplexity_of(loss), bits_per_byte=bits, change=change)


def perplexity_of(loss: Interval) -> Interval:
    """Of a loss in nats per token."""
    value, low, high = (math.exp(each) if each < 700 else math.inf for each in (loss.value, loss.low, loss.high))
    return replace(loss, value=value, low=low, high=high)


def target_bytes(text: Text, spans: Sequence[Span]) -> np.ndarray:
    """`(target,)`, int64: bytes of text behind each target."""
    tokens = [text.documents[span.document].read(span.start + 1, span.count) for span in spans]
    return text.token_bytes[np.concatenate(tokens)]


def contexts(windows: Sequence[Window], n_targets: int) -> np.ndarray:
    """`(target,)`, int64: tokens read before each."""
    found = np.zeros(n_targets, dtype=np.int64)
    for window in windows:
        found[window.at : window.at + window.scored] = np.arange(window.size - window.scored, window.size) + 1
    return found


def by_position(losses: np.ndarray, before: np.ndarray, units: Units, seed: int) -> list[PositionResult]:
    """Loss by the number of tokens before a target, in bins that double: they end at powers of two.

    Args:
        losses: `(target,)`, of one context length.
        before: `(target,)`, as `contexts` gives it.
    """
    found = []
    most = int(before.max())
    for power in range((most - 1).bit_length() + 1):
        first, last = 2**power // 2 + 1, min(2**power, most)  # 1, 2, 3 to 4, 5 to 8, …
        inside = (before >= first) & (before <= last)
        if inside.any():
            sums, counts = units.sums(np.where(inside, losses, 0.0)), units.sums(inside)
            found.append(PositionResult(first, last, int(inside.sum()), units.interval(sums, counts, seed)))
    return found

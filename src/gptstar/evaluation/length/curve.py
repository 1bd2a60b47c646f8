"""One model read at each context length: the same targets, other contexts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gptstar.evaluation.length.config import CONTROL, LengthConfig
from gptstar.evaluation.length.figures import (
    LengthResult,
    PositionResult,
    Units,
    by_position,
    contexts,
    target_bytes,
    with_figures,
)
from gptstar.evaluation.length.legacy import Metric, legacy_figures, legacy_windows
from gptstar.evaluation.length.protocols import (
    Window,
    assert_same_targets,
    ending,
    last_blocks,
    overlapping,
    stretches,
)
from gptstar.evaluation.length.reading import Cost, Reader, growth
from gptstar.evaluation.length.text import Text

Read = tuple[np.ndarray, Cost]
"""Losses of all targets, and what reading them took."""


@dataclass(frozen=True)
class Curve:
    """One model, or one way to scale its rotary positions, at each context length.

    Attributes:
        reference: the length that changes are against; None with `legacy`.
        units: of the intervals: `documents` or `stretches`, and how many.
        positions: at the longest length where the model is defined; empty with `fixed_targets` and `legacy`.
        time_growth, memory_growth: a window's time and memory grow as the length to these powers.
    """

    name: str
    trained_at: int | None
    reference: int | None
    units: str
    lengths: tuple[LengthResult, ...]
    positions: tuple[PositionResult, ...] = ()
    time_growth: float = float("nan")
    memory_growth: float = float("nan")
    rotary_scaling: str = "none"
    checkpoint: dict[str, Any] = field(default_factory=dict)


class Plan:
    """What is read of a text at each length, so that every length scores the same targets.

    Attributes:
        lengths: ascending, the control included.
        reference: the length that changes are against: the control, else the shortest.
        by_position: whether targets stand anywhere in a window, and not all at its end.
    """

    def __init__(self, text: Text, config: LengthConfig, lengths: Sequence[int]) -> None:
        """Choose the targets.

        Raises:
            DataError: the text is too short for the longest length.
        """
        self.text, self._config = text, config
        self.by_position = config.protocol != "fixed_targets"
        self.lengths = config.with_control(lengths)
        self.reference = min(self.lengths)
        if config.protocol == "fixed_targets":
            self.reference = CONTROL if CONTROL in self.lengths else self.reference
            targets = config.targets or max(1, min(self.lengths) // 2)
            self.spans = last_blocks(text.sizes, max(*lengths, config.room or 0), targets, config.limit)
        else:
            side_by_side = config.protocol == "disjoint"
            self.spans = stretches(text.sizes, self.lengths, config.limit, side_by_side=side_by_side)
        self.n_targets = sum(span.count for span in self.spans)
        self.units = Units(self.spans, max(self.lengths))
        self.sizes = target_bytes(text, self.spans)
        self.n_bytes = int(self.sizes.sum()) if text.exact_bytes else None

    def windows(self, length: int) -> list[Window]:
        """What is read at a length."""
        if self._config.protocol == "fixed_targets":
            windows = list(ending(self.spans, length))
        elif self._config.protocol == "sliding":
            stride = self._config.stride or max(1, length // 2)
            windows = list(overlapping(self.spans, length, stride))
        else:
            windows = list(overlapping(self.spans, length, length))
        assert_same_targets(self.spans, windows)
        return windows

    def read_at(self, length: int) -> int:
        """Tokens that go through the model at a length."""
        return sum(window.size for window in self.windows(length))


def read_curve(
    reader: Reader,
    plan: Plan,
    *,
    name: str,
    trained_at: int | None = None,
    seed: int = 0,
    known: dict[int, Read] | None = None,
) -> Curve:
    """Read a text at each length of a plan.

    Args:
        known: what need not be read again, by length; what is read is added.
    """
    known = {} if known is None else known
    reference: np.ndarray | None = None
    results: list[LengthResult] = []
    positions: list[PositionResult] = []
    longest = max((length for length in plan.lengths if reader.is_defined(length)), default=None)
    # The reference first, as others are set against it.
    for length in sorted(plan.lengths, key=lambda each: (each != plan.reference, each)):
        windows = plan.windows(length)
        before, read = contexts(windows, plan.n_targets), sum(window.size for window in windows)
        result = LengthResult(length, plan.n_targets, plan.n_bytes, float(before.mean()))
        if reader.is_defined(length):
            if length in known:
                reader.advance(read)
            else:
                known[length] = reader.read(plan.text, windows, plan.n_targets, length)
            losses, cost = known[length]
            sums = plan.units.sums(losses)
            reference = sums if length == plan.reference else reference
            result = with_figures(result, sums, reference, plan.sizes, plan.units, seed)
            result = replace(result, seconds=cost.seconds, memory=cost.memory, read=read)
            if length == longest and plan.by_position:
                positions = by_position(losses, before, plan.units, seed)
        else:
            reader.advance(read)
        results.append(result)
    results.sort(key=lambda each: each.context_length)
    time_growth, memory_growth = _growth(results, known, reader.batch_tokens)
    units = f"{plan.units.count:,} {plan.units.name}"
    return Curve(name, trained_at, plan.reference, units, tuple(results), tuple(positions), time_growth, memory_growth)


def read_legacy_curve(
    reader: Reader,
    text: Text,
    n_bytes: int,
    lengths: Sequence[int],
    metric: Metric,
    *,
    name: str,
    trained_at: int | None = None,
) -> Curve:
    """The published estimator at each length.

    Args:
        n_bytes: of the text.
    """
    results: list[LengthResult] = []
    known: dict[int, Read] = {}
    n_tokens = len(text.documents[0])
    for length in lengths:
        windows = legacy_windows(n_tokens, length)
        n_targets = len(windows) * (length - 1)
        result = LengthResult(length, n_targets, n_bytes, length / 2)
        if reader.is_defined(length):
            known[length] = losses, cost = reader.read(text, windows, n_targets, length)
            loss, perplexity, bits = legacy_figures(losses, length, n_tokens, n_bytes, metric)
            result = replace(result, loss=loss, perplexity=perplexity, bits_per_byte=bits)
            result = replace(result, seconds=cost.seconds, memory=cost.memory, read=n_targets)
        else:
            reader.advance(n_targets)
        results.append(result)
    return Curve(name, trained_at, None, "", tuple(results), (), *_growth(results, known, reader.batch_tokens))


def _growth(results: Sequence[LengthResult], known: dict[int, Read], batch_tokens: int) -> tuple[float, float]:
    """Powers by which a window's time and memory grow with its length, whatever the number of windows read at once."""
    there = [result for result in results if result.read]
    lengths = [result.context_length for result in there]
    seconds = [result.context_length * (result.seconds or 0.0) / (result.read or 1) for result in there]
    costs = [known[length][1] for length in lengths]
    memory = [
        (cost.memory - cost.held) / max(1, batch_tokens // length) for cost, length in zip(costs, lengths, strict=True)
    ]
    return growth(lengths, seconds), growth(lengths, memory)

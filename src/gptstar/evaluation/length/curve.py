"""The loss of one model at each context length, on the same targets."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from gptstar.evaluation.length.config import CONTROL, Control, LengthConfig
from gptstar.evaluation.length.figures import LengthResult, PositionResult, Units, by_position, contexts, perplexity_of
from gptstar.evaluation.length.legacy import LegacyPlan
from gptstar.evaluation.length.protocols import (
    Window,
    assert_same_targets,
    ending,
    last_blocks,
    overlapping,
    split,
    stretches,
)
from gptstar.evaluation.length.reading import Cost, Reader, growth
from gptstar.evaluation.length.text import Text
from gptstar.evaluation.statistics.intervals import Interval

Read = tuple[np.ndarray, Cost]
"""The losses of all targets, and the time and memory of reading them."""


Context = Literal["full"] | Control

TRUNCATED_TARGETS = 16
"""A truncated text scores at most one in so many of its tokens: so each target has nearly all of them before it, as
under the other controls, where it has the whole training context."""


@dataclass(frozen=True)
class Curve:
    """The results of one model at each context length, in one way of reading: plain, with scaled positions, or cut.

    Attributes:
        reference: the length with which changes compare; None with `legacy`.
        units: the kind and number of independent units for intervals: `documents` or `stretches`.
        scaling: the scaling of positions beyond the training context; earlier files call it `rotary_scaling`.
        context: what is read: `full`: the whole context; `cut`: the whole context, with attention over as many tokens
            as the training context has; `cut_with_sinks`: with attention over the text's first tokens as well;
            `truncated`: at most a training context of text.
        positions: the loss by position, at the longest length for which the model is defined; empty with
            `fixed_targets` and `legacy`.
        time_growth, memory_growth: a window's time and memory grow as the length to these powers.
        targets: a fingerprint of the tokens scored, the same at every length; "" with `legacy`.
        counts: `(unit,)`: the number of targets in each independent unit of text.
    """

    name: str
    trained_at: int | None
    reference: int | None
    units: str
    lengths: tuple[LengthResult, ...]
    positions: tuple[PositionResult, ...] = ()
    time_growth: float = float("nan")
    memory_growth: float = float("nan")
    scaling: str = "none"
    checkpoint: dict[str, Any] = field(default_factory=dict)
    targets: str = ""
    counts: tuple[int, ...] = ()
    context: Context = "full"


class Plan:
    """A plan of the windows to read at each length, such that every length scores the same targets.

    Attributes:
        lengths: the context lengths, ascending, the control included.
        reference: the length with which changes compare: the given one, else the control, else the shortest.
        units: the kind and number of units for intervals.
        targets, counts: as in `Curve`.
    """

    def __init__(
        self, text: Text, config: LengthConfig, lengths: Sequence[int], *, reference: int | None = None
    ) -> None:
        """Choose the targets.

        Args:
            reference: one of the lengths, in place of the control.

        Raises:
            DataError: the text is too short for the longest length.
        """
        self.text, self._config = text, config
        self.lengths = config.with_control(lengths) if reference is None else tuple(sorted(lengths))
        self.reference, longest = min(self.lengths), max(self.lengths)
        if config.protocol == "fixed_targets":
            block = config.targets or max(1, self.reference // 2)
            self.spans = last_blocks(text.sizes, max(longest, config.room or 0), block, config.limit)
            self.reference = CONTROL if CONTROL in self.lengths else self.reference
        else:
            side_by_side = config.protocol == "disjoint"
            self.spans = stretches(text.sizes, self.lengths, config.limit, side_by_side=side_by_side)
        self.reference = reference or self.reference
        self.n_targets = sum(span.size for span in self.spans)
        self._units = Units(self.spans, max(longest, config.room or 0))
        self.units = f"{self._units.count:,} {self._units.name}"
        targets = [text.documents[span.document].read(span.start + 1, span.size) for span in self.spans]
        tokens = np.concatenate(targets)
        self.targets = hashlib.sha256(tokens.astype(np.int64).tobytes()).hexdigest()[:16]
        self.counts = tuple(np.bincount(self._units.numbers).tolist())
        self._bytes = text.token_bytes[tokens]
        self.n_bytes = int(self._bytes.sum()) if text.exact_bytes else None

    def windows(self, length: int) -> list[Window]:
        """Return the windows to read at a length."""
        if self._config.protocol == "fixed_targets":
            windows = list(ending(self.spans, length))
        elif self._config.protocol == "sliding":
            windows = list(overlapping(self.spans, length, self._config.stride or max(1, length // 2)))
        else:
            windows = list(overlapping(self.spans, length, length))
        assert_same_targets(self.spans, windows)
        return windows

    def truncated(self, length: int) -> list[Window]:
        """Return windows of a length in which each target has at least 15 / 16 of it before it."""
        windows = list(ending([*split(self.spans, max(1, length // TRUNCATED_TARGETS))], length))
        assert_same_targets(self.spans, windows)
        return windows

    def with_figures(self, result: LengthResult, losses: np.ndarray, reference: np.ndarray | None) -> LengthResult:
        """Add figures with intervals to a result.

        `losses` and `reference`, those at the reference length, are `(target,)`, in nats; `reference` is None if the
        model is undefined there.
        """
        units, seed = self._units, self._config.seed
        sums, counts = units.sums(losses), units.sums(np.ones(self.n_targets))
        loss, bits, change = units.interval(sums, counts, seed), None, None
        if self.n_bytes:
            bits = units.interval(sums / math.log(2), units.sums(self._bytes), seed)
        if reference is not None and result.context_length != self.reference:
            change = units.change(units.sums(reference), sums, counts, seed)
        return replace(
            result,
            loss=loss,
            perplexity=perplexity_of(loss),
            bits_per_byte=bits,
            change=change,
            sums=tuple(sums.tolist()),
        )

    def loss_on(self, losses: np.ndarray, selected: np.ndarray) -> Interval:
        """Estimate the mean loss of selected targets; `losses`, in nats, and `selected`, bool, are `(target,)`."""
        sums, counts = self._units.sums(np.where(selected, losses, 0.0)), self._units.sums(selected)
        return self._units.interval(sums, counts, self._config.seed)

    def positions(self, losses: np.ndarray, before: np.ndarray) -> tuple[PositionResult, ...]:
        """Return the loss by the number of tokens before a target; empty if all targets are at the ends of windows."""
        if self._config.protocol == "fixed_targets":
            return ()
        return tuple(by_position(losses, before, self._units, self._config.seed))


def read_curve(
    reader: Reader,
    plan: Plan | LegacyPlan,
    *,
    name: str,
    trained_at: int | None = None,
    known: dict[int, Read] | None = None,
) -> Curve:
    """Read a text at each length of a plan, but for the lengths that are `known`; what is read is added to them."""
    known = {} if known is None else known
    results: list[LengthResult] = []
    positions: tuple[PositionResult, ...] = ()
    longest = max((length for length in plan.lengths if reader.is_defined(length)), default=None)
    # The reference is read first, because the others are compared with it.
    for length in sorted(plan.lengths, key=lambda each: (each != plan.reference, each)):
        windows = plan.windows(length)
        n_targets, n_read = sum(window.scored for window in windows), sum(window.size for window in windows)
        before = contexts(windows, n_targets)
        result = LengthResult(length, n_targets, plan.n_bytes, float(before.mean()))
        if reader.is_defined(length) and length not in known:
            known[length] = reader.read(plan.text, windows, n_targets, length)
        else:
            reader.advance(n_read)
        if length in known:
            losses, cost = known[length]
            reference = known[plan.reference][0] if plan.reference in known else None
            result = plan.with_figures(result, losses, reference)
            result = replace(result, seconds=cost.seconds, memory=cost.memory, read=n_read)
            if length == longest:
                positions = plan.positions(losses, before)
        results.append(result)
    results.sort(key=lambda each: each.context_length)
    # The time and memory of one window, whatever the number of windows read at once.
    costs = [(result.context_length, result.read, known[result.context_length][1]) for result in results if result.read]
    lengths = [length for length, _, _ in costs]
    seconds = [length * cost.seconds / n_read for length, n_read, cost in costs]
    memory = [(cost.memory - cost.held) / max(1, reader.batch_tokens // length) for length, _, cost in costs]
    growths = growth(lengths, seconds), growth(lengths, memory)
    curve = Curve(name, trained_at, plan.reference, plan.units, tuple(results), positions, *growths)
    return replace(curve, targets=plan.targets, counts=plan.counts)


def read_truncated(reader: Reader, plan: Plan, *, name: str, trained_at: int, known: dict[int, Read]) -> Curve:
    """Read the targets of a plan with a training context of text only, which stands for every longer length.

    Args:
        known: what the plain way read, up to the training context; what is read here is added to it.
    """
    longer = {length for length in plan.lengths if length > trained_at and reader.is_defined(trained_at)}
    windows = plan.truncated(trained_at) if longer else []
    if longer:
        known |= dict.fromkeys(longer, reader.read(plan.text, windows, plan.n_targets, trained_at))
    counted = replace(reader, advance=lambda _: None)  # no other length is read
    curve = read_curve(counted, plan, name=name, trained_at=trained_at, known=known)
    n_read, before = sum(window.size for window in windows), contexts(windows, plan.n_targets) if longer else None
    results = (
        replace(each, mean_context=float(before.mean()), read=n_read)
        if before is not None and each.context_length in longer
        else each
        for each in curve.lengths
    )
    return replace(curve, lengths=tuple(results), time_growth=math.nan, memory_growth=math.nan)

"""Comparison of losses at context lengths with a first model's, paired by document. All differences are B minus A."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import TypeAdapter

from gptstar.errors import ConfigError
from gptstar.evaluation.compare import CAVEAT, CHECKPOINTS, Comparisons, Row, letter, names_of, with_holm
from gptstar.evaluation.statistics.paired import Paired, paired_ratio

UNPAIRED = "{}: without intervals and p, because {}."


@dataclass(frozen=True)
class Figure:
    """A figure without its interval, which the comparison does not need."""

    value: float


@dataclass(frozen=True)
class Point:
    """The figures of a `LengthResult` that are compared."""

    context_length: int
    tokens: int
    loss: Figure | None
    bits_per_byte: Figure | None
    sums: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reading:
    """One model's losses at several context lengths.

    Attributes:
        protocol: the name of the protocol.
        study: a description of the whole protocol and of the text; only equal ones are comparable.
        checkpoint: the identity of the model's checkpoint, with a `name`.
        targets, counts: as in `Curve`.
    """

    protocol: str
    study: str
    checkpoint: Mapping[str, Any]
    lengths: tuple[Point, ...]
    targets: str = ""
    counts: tuple[int, ...] = ()

    @classmethod
    def parse(cls, protocol: str, study: str, curve: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Self:
        """Parse one model's part of a `results.json`. Raises ValueError if it is damaged."""
        known = {"protocol": protocol, "study": study, "checkpoint": checkpoint}
        reading = TypeAdapter(cls).validate_python({**curve, **known})
        if any(point.sums and len(point.sums) != len(reading.counts) for point in reading.lengths):
            raise ValueError("its sums are not of its units of text")
        return reading


def equal_targets(lengths: Collection[float]) -> str:
    """Return a sentence without its stop on how to score the same targets, given all context lengths in tokens."""
    keys = {"protocol": "fixed_targets", "room": int(max(lengths)), "targets": max(int(min(lengths)) // 2, 1)}
    words = " ".join(f"evaluation.{key}={value}" for key, value in keys.items())
    return f"`gptstar evaluate evaluation=length {words} checkpoint=[RUN,RUN]` scores the same targets for all runs"


def compare_curves(readings: Sequence[Reading]) -> Comparisons:
    """Compare the losses of models with those of the first, at each context length that both have.

    If both scored the same targets, the losses are paired by document (or stretch of text) by a bootstrap-t, and Holm's
    adjustment has one family: all lengths of all models. If other tokens were scored, as other tokenizers make them,
    bits per byte are compared where both have them.

    Raises:
        ConfigError: the text or the protocol differs, or there is no common length.
    """
    first = readings[0]
    rows: list[list[Row]] = []
    unpaired: dict[str, list[str]] = {}
    for number, other in enumerate(readings[1:], start=1):
        if other.study != first.study:
            raise ConfigError(
                f"A was read as {first.study}, and {letter(number)} as {other.study}: only losses on one text by one "
                "protocol can be compared: evaluate all in one command, evaluation=length checkpoint=[A,B]"
            )
        problem = _why_unpaired(first, other)
        if problem:
            unpaired.setdefault(problem, []).append(letter(number))
        rows.append(list(_rows(first, other, paired=not problem)))
        if not rows[-1]:
            raise ConfigError(f"no context length is in both A and {letter(number)}: give evaluation.context_lengths")
    notes = [f"Read as: {first.study}."]
    notes += [UNPAIRED.format(", ".join(letters), problem) for problem, letters in unpaired.items()]
    adjusted, n_tests = with_holm(rows)
    if n_tests > 1:
        notes.append(f"Holm's p is adjusted for {n_tests} tests in all.")
    names = names_of([each.checkpoint for each in readings])
    caveat = CAVEAT.replace("items", "text") if n_tests else CHECKPOINTS
    return Comparisons("length", names, adjusted, (*notes, caveat))


def _why_unpaired(a: Reading, b: Reading) -> str:
    """Return why two models' losses can't be paired; empty if they can."""
    if a.protocol == "legacy":
        return "the published estimator has none"
    if not a.counts or not b.counts:
        return "these results lack the losses by document: evaluate again"
    if a.targets != b.targets or a.counts != b.counts:
        lengths = [point.context_length for point in (*a.lengths, *b.lengths)]
        return f"other tokens were scored. {equal_targets(lengths)}"
    return ""


def _rows(a: Reading, b: Reading, *, paired: bool) -> Iterator[Row]:
    others = {point.context_length: point for point in b.lengths}
    both = [(point, others[point.context_length]) for point in a.lengths if point.context_length in others]
    are_others = a.targets != b.targets or any(mine.tokens != theirs.tokens for mine, theirs in both)
    in_bits = [(mine.bits_per_byte, theirs.bits_per_byte) for mine, theirs in both if mine.loss and theirs.loss]
    bits = are_others and all(map(all, in_bits))
    for mine, theirs in both:
        figures = (mine.bits_per_byte, theirs.bits_per_byte) if bits else (mine.loss, theirs.loss)
        if mine.loss is None or theirs.loss is None or figures[0] is None or figures[1] is None:
            continue
        values = figures[0].value, figures[1].value
        found = Paired(values[1] - values[0], math.nan, math.nan, math.nan, "none")
        if paired:
            found = paired_ratio(mine.sums, theirs.sums, a.counts)
        low, high, p = (None if math.isnan(number) else number for number in (found.low, found.high, found.p))
        yield Row(
            task=str(mine.context_length),
            metric="bits_per_byte" if bits else "loss",
            kind="bits_per_byte" if bits else "mean",
            higher_is_better=False,
            a=values[0],
            b=values[1],
            difference=values[1] - values[0],
            ratio=None,
            low=low,
            high=high,
            p=p,
            p_holm=None,
            test=found.test,
            primary=p is not None,
            items=mine.tokens,
        )

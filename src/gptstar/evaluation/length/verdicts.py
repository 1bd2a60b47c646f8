"""Verdicts on whether a model uses more context than in training, by comparison with controls that see no farther.

The controls read the same targets: *cut*, with attention cut at the training context; *cut with sinks*, with the text's
first 4 tokens visible too; *truncated*, with only a training context of text before a target (at least 15 / 16 of it).
*Full* is compared with the control that has the lowest loss. This choice favours the controls. The verdicts are:

- *breaks*: the 95 % interval of full less truncated lies above delta;
- *uses*: full is better than the best control, p of no difference is below 0.05 after Holm's adjustment, and recall
  beyond the training context is above chance;
- *ignores*: full less the best control lies within delta of 0, by two one-sided tests of 2.5 % each (Schuirmann 1987)
  that allow for the choice of the best of three: no control's 95 % interval reaches above delta, and one control's
  interval at 1 - 0.05 / 3 (Bonferroni) lies above -delta;
- *can't tell* otherwise.

The intervals of *breaks* and *ignores* are not adjusted for the number of lengths. A gain that is significant but
within delta counts as *uses* if there is recall. Delta, 0.005 nats, was fixed before any result was known.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gptstar.evaluation.length.config import CONTROLS, TRUNCATED
from gptstar.evaluation.length.curve import Context, Curve
from gptstar.evaluation.length.figures import LengthResult
from gptstar.evaluation.statistics.intervals import ratio_interval
from gptstar.evaluation.statistics.paired import CONFIDENCE, Paired, holm, paired_ratio

DELTA, LEVEL = 0.005, 0.05

CHOSEN = 1 - (1 - CONFIDENCE) / len(CONTROLS)
"""The confidence of each control's interval of which the best one's lower end counts."""

Answer = Literal["uses", "ignores", "breaks", "can't tell", "undefined"]

RECALL_UNKNOWN = "better than every control, but recall was not measured: run evaluation=recall"
NO_RECALL = "better than every control, but recall beyond the training context is not above chance"
MISSING = "not every control was read"
NO_INTERVAL = "there is no interval"
INCONCLUSIVE = "the interval shows neither a difference nor equivalence"
ONE_OF_THREE = "within delta of the best control, but not if the choice of the best of three is allowed for"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a model at one context length beyond its training context.

    Attributes:
        name: the name of the curve.
        losses: the defined losses in nats per token, by context: `full`, `cut`, `cut_with_sinks`, `truncated`.
        best: the control with the lowest loss; "" if there is none.
        difference: the loss of full less that of the best control, over the text.
        p_holm: the p of no difference, adjusted for all verdicts of a study.
        change: the loss of full less that of truncated, over the text.
        bounds: the ends that *ignores* compares with delta: the best lower end and the highest upper end of all
            controls; None if not all were read.
        reason: the reason for *can't tell*; "" for the other answers.
    """

    name: str
    trained_at: int
    context_length: int
    losses: Mapping[str, float]
    best: str
    difference: Paired | None
    change: Paired | None
    bounds: tuple[float, float] | None = None
    p_holm: float = math.nan
    answer: Answer = "undefined"
    reason: str = ""


def bounds_of(lows: Iterable[float], highs: Iterable[float]) -> tuple[float, float]:
    """Return the bounds of full less the best control, which is the largest of the differences; NaN if one is unknown.

    Args:
        lows: of full less each control, at the confidence `CHOSEN`.
        highs: of full less each control, at 95 %.
    """
    return float(np.max([*lows])), float(np.max([*highs]))


def judged(
    difference: Paired | None,
    change: Paired | None,
    bounds: tuple[float, float] | None,
    p_holm: float,
    recalls: bool | None,
    delta: float = DELTA,
) -> tuple[Answer, str]:
    """Return the answer, and the reason if it is *can't tell*.

    Args:
        difference: the loss of full less that of the best control; None if not all controls were read.
        change: the loss of full less that of truncated.
        bounds: as in `Verdict`.
        p_holm: the adjusted p of the difference.
        recalls: whether recall beyond the training context is above chance; None if it was not measured.
        delta: nats per token, fixed before the losses are known.
    """
    if change is not None and change.low > delta:
        return "breaks", ""
    if difference is None:
        return "can't tell", MISSING
    if math.isnan(difference.low):
        return "can't tell", NO_INTERVAL
    is_better = difference.difference < 0 and p_holm < LEVEL
    if is_better and recalls:
        return "uses", ""
    if is_better and recalls is None:
        return "can't tell", RECALL_UNKNOWN
    if bounds is not None and -delta < bounds[0] and bounds[1] < delta:
        return "ignores", ""
    if is_better:
        return "can't tell", NO_RECALL
    return "can't tell", ONE_OF_THREE if -delta < difference.low <= difference.high < delta else INCONCLUSIVE


def verdicts_of(
    checkpoints: Iterable[Mapping[Context, Curve]],
    recalls: bool | None = None,
    *,
    delta: float = DELTA,
    seed: int = 0,
) -> list[Verdict]:
    """Return the verdict on each checkpoint at each length beyond its training context.

    Args:
        checkpoints: the curves of each checkpoint by context, from one study. Holm's adjustment covers all lengths of
            all checkpoints.
        recalls: as in `judged`.
        delta: as in `judged`.
        seed: the seed of resampling.
    """
    compared = [verdict for curves in checkpoints for verdict in _compared(curves, seed)]
    adjusted = holm([math.nan if each.difference is None else each.difference.p for each in compared])
    return [_answered(each, p, recalls, delta) for each, p in zip(compared, adjusted, strict=True)]


def _compared(curves: Mapping[Context, Curve], seed: int) -> Iterator[Verdict]:
    """Compare one checkpoint with its controls at each length beyond its training context."""
    plain = curves["full"]
    assert plain.trained_at is not None, "controls are refused without a training context"
    at = {context: {each.context_length: each for each in curve.lengths} for context, curve in curves.items()}
    for length, full in at["full"].items():
        if length <= plain.trained_at:
            continue
        controls: dict[str, LengthResult] = {context: at[context][length] for context in CONTROLS if context in at}
        losses = {
            context: result.loss.value
            for context, result in {"full": full, **controls}.items()
            if result.loss is not None
        }
        best = min((each for each in losses if each != "full"), key=lambda each: losses[each], default="")
        difference, change = (
            _paired(plain.counts, controls[each], full, seed) if each in losses and "full" in losses else None
            for each in (best, TRUNCATED)
        )
        bounds = None
        if {"full", *CONTROLS} - {*losses}:
            difference = None
        else:
            bounds = _bounds(plain.counts, controls, full, seed)
        yield Verdict(plain.name, plain.trained_at, length, losses, best, difference, change, bounds)


def _paired(counts: Sequence[int], before: LengthResult, after: LengthResult, seed: int) -> Paired:
    return paired_ratio(before.sums, after.sums, counts, seed=seed)


def _bounds(
    counts: Sequence[int], controls: Mapping[str, LengthResult], full: LengthResult, seed: int
) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):  # two that are infinite
        differences = [np.subtract(full.sums, each.sums) for each in controls.values()]
    at_chosen, at_95 = (
        [ratio_interval(each, counts, confidence=confidence, seed=seed) for each in differences]
        for confidence in (CHOSEN, CONFIDENCE)
    )
    return bounds_of((each.low for each in at_chosen), (each.high for each in at_95))


def _answered(verdict: Verdict, p_holm: float, recalls: bool | None, delta: float) -> Verdict:
    if "full" not in verdict.losses:
        return verdict
    answer, reason = judged(verdict.difference, verdict.change, verdict.bounds, p_holm, recalls, delta)
    return replace(verdict, p_holm=p_holm, answer=answer, reason=reason)

"""Verdicts on whether a model uses more context than in training, by comparison with controls that see no farther.

The controls read the same targets: *cut*, with attention cut at the training context; *cut with sinks*, with the text's
first 4 tokens visible too; *truncated*, with only a training context of text. *Full* is compared with the control that
has the lowest loss. This choice favours the controls. The verdicts are:

- *breaks*: the 95 % interval of full less truncated lies above delta;
- *uses*: full is better than the best control, p of no difference is below 0.05 after Holm's adjustment, and recall
  beyond the training context is above chance;
- *ignores*: the 95 % interval of full less the best control lies within delta of 0, which is two one-sided tests of
  2.5 % each (Schuirmann 1987);
- *can't tell* otherwise.

The intervals of *breaks* and *ignores* are not adjusted for the number of lengths. A gain that is significant but
within delta counts as *uses* if there is recall. Delta, 0.005 nats, was fixed before any result was known.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gptstar.evaluation.length.config import CUTS
from gptstar.evaluation.length.curve import Context, Curve
from gptstar.evaluation.length.figures import LengthResult
from gptstar.evaluation.statistics.paired import Paired, holm, paired_ratio

DELTA, LEVEL = 0.005, 0.05

Answer = Literal["uses", "ignores", "breaks", "can't tell", "undefined"]

TRUNCATED = "truncated"
RECALL_UNKNOWN = "better than every control, but recall was not measured: run evaluation=recall"
NO_RECALL = "better than every control, but recall beyond the training context is not above chance"
MISSING = "not every control was read"
NO_INTERVAL = "there is no interval"
INCONCLUSIVE = "the interval shows neither a difference nor equivalence"


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
        reason: the reason for *can't tell*; "" for the other answers.
    """

    name: str
    trained_at: int
    context_length: int
    losses: Mapping[str, float]
    best: str
    difference: Paired | None
    change: Paired | None
    p_holm: float = math.nan
    answer: Answer = "undefined"
    reason: str = ""


def judged(
    difference: Paired | None, change: Paired | None, p_holm: float, recalls: bool | None, *, delta: float = DELTA
) -> tuple[Answer, str]:
    """Return the answer, and the reason if it is *can't tell*.

    Args:
        difference: the loss of full less that of the best control; None if not all controls were read.
        change: the loss of full less that of truncated.
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
    if -delta < difference.low <= difference.high < delta:
        return "ignores", ""
    return "can't tell", NO_RECALL if is_better else INCONCLUSIVE


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
    truncated = at["full"].get(plain.trained_at)
    for length, full in at["full"].items():
        if length <= plain.trained_at:
            continue
        controls: dict[str, LengthResult | None] = {context: at[context][length] for context in CUTS if context in at}
        controls[TRUNCATED] = truncated
        losses = {
            context: result.loss.value
            for context, result in {"full": full, **controls}.items()
            if result is not None and result.loss is not None
        }
        best = min((each for each in losses if each != "full"), key=lambda each: losses[each], default="")
        difference, change = (
            _paired(plain.counts, controls[each], full, seed) if each in losses and "full" in losses else None
            for each in (best, TRUNCATED)
        )
        if {*CUTS, TRUNCATED} - {*losses}:
            difference = None
        yield Verdict(plain.name, plain.trained_at, length, losses, best, difference, change)


def _paired(counts: Sequence[int], before: LengthResult | None, after: LengthResult, seed: int) -> Paired:
    assert before is not None
    return paired_ratio(before.sums, after.sums, counts, seed=seed)


def _answered(verdict: Verdict, p_holm: float, recalls: bool | None, delta: float) -> Verdict:
    if "full" not in verdict.losses:
        return verdict
    answer, reason = judged(verdict.difference, verdict.change, p_holm, recalls, delta=delta)
    return replace(verdict, p_holm=p_holm, answer=answer, reason=reason)

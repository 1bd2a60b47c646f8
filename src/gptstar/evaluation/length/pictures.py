"""Pictures of a study of context length: its curves as the plots take them."""

from collections.abc import Sequence
from pathlib import Path

from gptstar.evaluation.length.curve import Curve
from gptstar.plots.lengths import LengthLine, draw_lengths
from gptstar.plots.lines import Point
from gptstar.plots.positions import PositionLine, draw_positions
from gptstar.plots.style import save


def plot_context_length(curves: Sequence[Curve], path: Path, title: str, *, bits: bool = False) -> None:
    """Save a picture of loss against context length; bars are 95 % intervals over the text.

    With `bits` the loss is in bits per byte, which compare models with different tokenizers, not in nats per token,
    and the paired changes, which are in nats, are left out.
    """
    references = {curve.reference for curve in curves}
    (reference, *others) = references
    since = (
        "change since the\nshortest context" if others or reference is None else f"change since\n{reference:,} tokens"
    )
    unit = "bits per byte" if bits else "nats per token"
    figure = draw_lengths([_length_line(curve, bits) for curve in curves], title, unit=unit, change=since)
    if figure is not None:
        save(figure, path)


def plot_positions(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Save a picture of the loss by the number of tokens before a target, at each model's longest context."""
    save(draw_positions([_position_line(curve) for curve in curves if curve.positions], title), path)


def _length_line(curve: Curve, bits: bool) -> LengthLine:
    losses, changes, undefined = [], [], []
    for result in curve.lengths:
        estimate = result.bits_per_byte if bits else result.loss
        if estimate is None:
            undefined.append(result.context_length)
            continue
        losses.append(Point(result.context_length, estimate.value, estimate.low, estimate.high))
        if result.change is not None and not bits:
            change = result.change
            changes.append(Point(result.context_length, change.difference, change.low, change.high))
    return LengthLine(curve.name, curve.trained_at, losses, changes, undefined)


def _position_line(curve: Curve) -> PositionLine:
    points = [
        Point((each.first * each.last) ** 0.5, each.loss.value, each.loss.low, each.loss.high)
        for each in curve.positions
    ]
    return PositionLine(curve.name, points, [each.last for each in curve.positions], curve.trained_at)

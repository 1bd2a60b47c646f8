"""Training and validation loss against tokens."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gptstar.plots.labels import tokens_axis
from gptstar.plots.lines import Point
from gptstar.plots.style import BLUE, COLOURS, GREY, NOTE, ORANGE, legend_below, new_figure, save, styled, styles, tidy

START = 0.1
"""The share of the tokens, from the start, whose training losses may lie above the plot; the end is compared."""


@dataclass(frozen=True)
class LossCurve:
    """The losses of a run, or an arm's mean over seeds, against tokens; points may have a band."""

    name: str
    training: Sequence[Point] = ()
    validation: Sequence[Point] = ()

    @property
    def last(self) -> float:
        """The last validation loss, or else the last training loss; infinite if it is nan."""
        last = (*self.training[-1:], *self.validation[-1:])[-1].value
        return last if math.isfinite(last) else math.inf


def plot_loss(rows: Sequence[Mapping[str, float]], path: Path, title: str, bigram: float | None = None) -> None:
    """Save the picture of one run, from the rows of its `metrics.csv`, with a bigram model's loss as the baseline."""
    save(draw_run(rows, title, bigram), path)


@styled
def draw_run(rows: Sequence[Mapping[str, float]], title: str, bigram: float | None = None) -> Figure:
    """Draw the training and validation loss of one run against tokens."""
    figure = new_figure(3.5)
    axes = tidy(figure.subplots())
    axes.set(title=title, ylabel="loss (nats per token)")
    tokens_axis(axes)
    rate = max((row["tokens"] / row["step"] for row in rows if "tokens" in row), default=1.0)  # tokens per step
    training = [Point(row["tokens"], row["train/loss"]) for row in rows if "train/loss" in row]
    validation = [Point(row["step"] * rate, row["validation/loss"]) for row in rows if "validation/loss" in row]
    _line(axes, training, "training", color=BLUE, linewidth=1, alpha=0.7, marker="o" if len(training) < 2 else "")
    _line(axes, validation, "validation", color=ORANGE, marker="o", markersize=4)
    if validation and math.isfinite((last := validation[-1]).value):
        axes.annotate(
            f"{last.value:.2f}",
            (last.x, last.value),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=ORANGE,
        )
    if bigram is not None:
        axes.axhline(bigram, color=GREY, linestyle="--", linewidth=1, label=f"bigram model, {bigram:.2f}")
    if training or validation or bigram is not None:
        axes.legend(frameon=False)
    return figure


@styled
def draw_losses(curves: Sequence[LossCurve], legend: str = "") -> Figure | None:
    """Draw the losses of several arms against tokens, the best in colour; thin lines: training, marked: validation.

    Return None if no loss was recorded.
    """
    drawn = [each for each in curves if each.training or each.validation]
    if not drawn:
        return None
    figure = new_figure(4.0)
    axes = tidy(figure.subplots())
    coloured = sorted(drawn, key=lambda each: each.last)[: len(COLOURS)]
    others = [each for each in drawn if each not in coloured]
    for number, each in enumerate(others):
        label = f"{len(others)} with higher loss" if not number else None
        _arm(axes, each, label, {"color": GREY, "linestyle": "-", "marker": "."}, alpha=0.5)
    for each, style in zip((each for each in drawn if each in coloured), styles(), strict=False):
        _arm(axes, each, each.name, style)
    axes.set_ylabel("loss (nats per token)\nthin: training; marked: validation")
    tokens_axis(axes)
    _leave_out_the_start(axes, drawn)
    legend_below(figure, axes, legend)
    return figure


def _arm(axes: Axes, curve: LossCurve, name: str | None, style: dict[str, Any], alpha: float = 1.0) -> None:
    solid = {"color": style["color"], "linestyle": style["linestyle"], "alpha": alpha}
    _line(axes, curve.training, None if curve.validation else name, linewidth=0.8, **solid)
    _line(axes, curve.validation, name, linewidth=1.4, markersize=5, marker=style["marker"], **solid)
    ranged = curve.validation if len(curve.validation) > 1 else curve.training
    places = [each.x for each in ranged]
    lows, highs = [each.low for each in ranged], [each.high for each in ranged]
    axes.fill_between(places, lows, highs, color=style["color"], alpha=0.13 * alpha, linewidth=0)


def _line(axes: Axes, points: Sequence[Point], name: str | None, **style: Any) -> None:
    if points:
        axes.plot([each.x for each in points], [each.value for each in points], label=name, **style)


def _leave_out_the_start(axes: Axes, curves: Sequence[LossCurve]) -> None:
    """Cut off the first training losses at the top, which would squeeze all others together."""
    training = [point for curve in curves for point in curve.training]
    validation = [point for curve in curves for point in curve.validation]
    after = START * max(point.x for point in (*training, *validation))
    late = [Point(each.x, each.value) for each in training if each.x >= after] if validation else training
    compared = list(_finite([*validation, *late]))
    if not compared:
        return
    drawn = [Point(each.x, each.value) for each in training]  # a validation's curve has a band, its training has none
    low, high = min([*compared, *_finite(drawn)]), max(compared)
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    if any(point.value > high + margin for point in training):
        axes.set_title("The first training losses lie above the plot.", fontsize=9, color=NOTE, loc="left")


def _finite(points: Iterable[Point]) -> Iterator[float]:
    """Yield the finite values of points and ends of their bands."""
    yield from (each for point in points for each in (point.value, point.low, point.high) if math.isfinite(each))

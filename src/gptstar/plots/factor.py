"""The outcome against a numeric factor: which value is best, and whether the range tried is wide enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gptstar.plots.labels import factor_axis, level_texts
from gptstar.plots.lines import Line, Point, draw_bars
from gptstar.plots.style import GREY, NOTE, PAPER, legend_below, new_figure, styled, styles, tidy


@dataclass(frozen=True)
class FactorLine(Line):
    """The outcome of one arm at each value of a factor, ascending.

    Attributes:
        best: the value of the factor to mark as the best; None to mark none.
        is_at_edge: whether a value beyond those tried may be better.
    """

    best: float | None = None
    is_at_edge: bool = False


@styled
def draw_factor(lines: Sequence[FactorLine], factor: str, outcome: str) -> Figure | None:
    """Draw an outcome against a numeric factor: a line for each arm, with bars from the lowest to the highest seed.

    Return None unless an arm has several values of the factor.
    """
    drawn = [each for each in lines if each.points]
    if all(len(each.points) < 2 for each in drawn):
        return None
    figure = new_figure(3.7)
    axes = tidy(figure.subplots())
    factor_axis(axes, [point.x for line in drawn for point in line.points])
    for line, style in zip(drawn, styles(), strict=False):
        draw_bars(axes, line.points, line.name, style)
        _mark_best(axes, line, style["color"], is_alone=len(drawn) == 1)
    axes.margins(x=0.1, y=0.18)
    axes.set(xlabel=factor, ylabel=outcome)
    notes = ["ring: lowest"]
    if any(line.is_at_edge for line in drawn):
        low, high = axes.get_xlim()
        places = [point.x for line in drawn for point in line.points]
        for begin, end in ((low, min(places)), (max(places), high)):
            axes.axvspan(begin, end, color=GREY, alpha=0.15, linewidth=0)
        axes.set_xlim(low, high)
        notes.append("arrow: best at the edge; shaded: not tried")
    axes.set_title("; ".join(notes), fontsize=9, color=NOTE, loc="left")
    legend_below(figure, axes)
    return figure


def _mark_best(axes: Axes, line: FactorLine, colour: str, *, is_alone: bool) -> None:
    best = next((each for each in line.points if each.x == line.best), None)
    if best is None:
        return
    axes.plot(best.x, best.value, marker="o", markersize=13, color=colour, markerfacecolor="none", linestyle="none")
    if is_alone:
        _annotate(axes, line, best, colour)
    if line.is_at_edge:
        outwards = 1 if best.x == max(each.x for each in line.points) else -1
        axes.annotate(
            "",
            (best.x, best.value),
            xytext=(26 * outwards, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<|-", "color": colour, "shrinkA": 0, "shrinkB": 9},
        )


def _annotate(axes: Axes, line: FactorLine, best: Point, colour: str) -> None:
    places = [each.x for each in line.points]
    side, shift = ("right", -9) if best.x == max(places) else ("left", 9)  # below its lines, and beside its bar
    label = f"{level_texts(places)[places.index(best.x)]}: {best.value:.3f}"
    over_grid = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
    where = (best.x, best.value), (shift, -6)
    axes.annotate(label, *where, textcoords="offset points", ha=side, va="top", color=colour, bbox=over_grid)

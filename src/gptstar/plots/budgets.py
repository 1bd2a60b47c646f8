"""The final loss of recipes against their token budgets."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from gptstar.plots.labels import short_names, tokens_axis
from gptstar.plots.lines import Line, Point
from gptstar.plots.style import legend_below, new_figure, styled, styles, tidy


@dataclass(frozen=True)
class BudgetLine(Line):
    """A recipe's mean final loss at each token budget, and the loss of every run."""

    runs: Sequence[Point] = ()


@styled
def draw_budgets(lines: Sequence[BudgetLine]) -> Figure | None:
    """Draw a line per recipe with several budgets, a horizontal line for a single budget, and a dot per run.

    Return None if no recipe has several budgets.
    """
    if all(len(each.points) < 2 for each in lines):
        return None
    figure = new_figure(3.8)
    axes = tidy(figure.subplots())
    for line, name, style in zip(lines, short_names([each.name for each in lines], 40), styles(), strict=False):
        places, values = [each.x for each in line.points], [each.value for each in line.points]
        axes.plot(places, values, label=name, linewidth=1.4, markersize=5, **style)
        runs = [each.x for each in line.runs], [each.value for each in line.runs]
        axes.plot(*runs, ".", color=style["color"], alpha=0.5)
        if len(values) == 1:
            axes.axhline(values[0], color=style["color"], linestyle=":", linewidth=1)
    tokens_axis(axes)
    axes.set(ylabel="final validation loss (nats per token)", xlim=(0, None))
    legend_below(figure, axes)
    return figure

"""Scores on tasks against tokens of training."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from gptstar.plots.labels import short_names, tokens_axis
from gptstar.plots.lines import Line, draw_bars
from gptstar.plots.style import COLOURS, legend_below, new_figure, styled, styles, tidy

MOST_PANELS = 6


@dataclass(frozen=True)
class ScoreCurves:
    """The scores of several runs on one task; the x values are tokens."""

    task: str
    metric: str
    lines: Sequence[Line]


@styled
def draw_score_curves(panels: Sequence[ScoreCurves]) -> Figure | None:
    """Draw a panel per task and a line per run, of the first ones only; return None if no score was recorded."""
    drawn = [panel for panel in panels if panel.lines][:MOST_PANELS]
    if not drawn:
        return None
    names = list(dict.fromkeys(line.name for panel in drawn for line in panel.lines))[: len(COLOURS)]
    short = dict(zip(names, short_names(names), strict=True))
    style_of = dict(zip(names, styles(), strict=False))
    n_columns = min(2, len(drawn))
    n_rows = -(-len(drawn) // n_columns)
    figure = new_figure(0.5 + 2.4 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, panel in zip(grid.flat, drawn, strict=False):
        tidy(axes)
        for line in (each for each in panel.lines if each.name in short):
            draw_bars(axes, line.points, short[line.name], style_of[line.name])
        axes.set_title(f"{panel.task}: {panel.metric}", fontsize=10, loc="left")
        tokens_axis(axes)
    for axes in grid.flat[len(drawn) :]:
        axes.remove()
    if len(names) > 1:
        legend_below(figure, grid[0, 0])
    return figure

"""Loss by the number of tokens before a target."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from gptstar.plots.labels import length_axis
from gptstar.plots.lines import Line, draw_bars
from gptstar.plots.style import GREY, legend_below, new_figure, styled, styles, tidy


@dataclass(frozen=True)
class PositionLine(Line):
    """The loss in each bin of positions, drawn at the bin's geometric mean; `ends` are the bins' last positions."""

    ends: Sequence[int] = ()
    trained_at: int | None = None


@styled
def draw_positions(lines: Sequence[PositionLine], title: str) -> Figure:
    """Draw a line for each model, with 95 % intervals, and mark the end of its training context."""
    figure = new_figure(3.6)
    axes = tidy(figure.subplots())
    length_axis(axes, sorted({end for line in lines for end in line.ends}))
    for line, style in zip(lines, styles(), strict=False):
        draw_bars(axes, line.points, line.name, style)
    for trained_at in {line.trained_at for line in lines if line.trained_at is not None}:
        axes.axvline(trained_at, color=GREY, linestyle=":", linewidth=1.2)
    has_context = any(line.trained_at is not None for line in lines)
    note = "\ndotted: where a training context ends" if has_context else ""
    axes.set(title=title, xlabel=f"tokens before the target{note}", ylabel="loss (nats per token)")
    legend_below(figure, axes)
    return figure

"""How far does a model recall? The share of right answers against the length of the text, by arm."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from gptstar.plots.lines import Line, draw_bars
from gptstar.plots.style import GREY, NOTE, legend_below, new_figure, styled, styles, tidy

CHARACTERS = 68
"""Of a line under the plot."""


@styled
def draw_recall_curves(lines: Sequence[Line], failed: Sequence[str], chance: float) -> Figure:
    """Draw a line for each arm that learned, with bars where there are intervals.

    Args:
        lines: shares from 0 to 1 at multiples of the training context.
        failed: arms that did not learn, named under the plot.
        chance: what a guess scores.
    """
    figure = new_figure(3.4 + 0.2 * (len(lines) // 3))
    axes = tidy(figure.subplots())
    places = sorted({point.x for line in lines for point in line.points})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{place:g}×" for place in places]))
    axes.xaxis.set_minor_locator(NullLocator())
    for number, (line, style) in enumerate(zip(lines, styles(), strict=False)):
        shift = 2 ** (0.03 * (number - (len(lines) - 1) / 2))  # so that bars stand beside each other
        draw_bars(axes, line.points, line.name, style, shift)
    axes.axhline(chance, color=GREY, linestyle=(0, (2, 2)), linewidth=1.2)
    axes.text(0.005, chance, "a guess", transform=axes.get_yaxis_transform(), color=NOTE, fontsize=9, va="bottom")
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("right answers")
    note = textwrap.fill(f"did not learn: {'; '.join(failed)}", CHARACTERS) if failed else ""
    axes.set_xlabel("\n".join(filter(None, ["length of the text / training context", note])))
    if len(lines) == 1:
        axes.set_title(lines[0].name, fontsize=9, loc="left")
    legend_below(figure, axes)
    return figure

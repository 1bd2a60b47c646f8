"""The style of all plots: colours, sizes, axes, and saving as PNG or SVG.

An SVG in a page follows the page's light or dark mode. A PNG can't, so it has its own light background, which is
legible in both.
"""

import functools
import io
import re
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure

INK, PAPER, GREY, NOTE = "#1c1c1c", "#fdfdfd", "#767676", "#5e5e5e"
"""Colours of text and axes, of the background, of reading aids on any background, and of small notes on light paper."""
DARK_INK, DARK_PAPER, DARK_NOTE = "#e4e4e4", "#161616", "#a8a8a8"
BLUE, ORANGE = "#1F7FC0", "#D55E00"
COLOURS = BLUE, ORANGE, "#009E73", "#CC79A7", INK
"""Colours of lines, which colour-blind readers can tell apart: those of Okabe and Ito's palette with a contrast of 3 on
both backgrounds; the blue is lighter than theirs."""
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
"""Markers and dashes of lines, which tell them apart in prints without colour."""

WIDTH = 5.4
"""The width of figures in inches. Text of 10 points is then 15 pixels high in a picture of 600 pixels, 9 on a phone."""
PIXELS = 1600

_LOOK: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.parse_math": False,  # names may contain dollar signs
    "svg.fonttype": "path",
    "svg.hashsalt": "gptstar",
}


P = ParamSpec("P")
F = TypeVar("F", bound=Figure | None)


def styled(draw: Callable[P, F]) -> Callable[P, F]:
    """Decorate a function so that all it draws has this style, whatever matplotlib's defaults are."""

    @functools.wraps(draw)
    def within(*args: P.args, **kwargs: P.kwargs) -> F:
        with rc_context(_LOOK):
            figure = draw(*args, **kwargs)
            if figure is not None:
                figure.draw_without_rendering()  # create the ticks now, within the style
            return figure

    return within


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Make an empty figure of the given size in inches."""
    return Figure(figsize=(width, height), dpi=125, layout="constrained")


def tidy(axes: Axes, grid: Literal["x", "y"] = "y") -> Axes:
    """Remove all lines but those that help to read values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    return axes


def styles() -> Iterator[dict[str, Any]]:
    """Yield a colour, a marker and a dash for each line of a plot, in an endless cycle."""
    for colour, marker, dash in zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False):
        yield {"color": colour, "marker": marker, "linestyle": dash}


def legend_below(figure: Figure, axes: Axes, title: str = "") -> None:
    """Draw a legend below the plot if it has several lines."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        columns = max(1, min(4, len(names), 64 // (max(map(len, names)) + 7)))
        figure.legend(
            handles,
            names,
            title=title or None,
            frameon=False,
            loc="outside lower center",
            ncols=columns,
            handlelength=2.6,
        )


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, 1,600 pixels wide."""
    with rc_context(_LOOK):
        figure.savefig(path, dpi=PIXELS / figure.get_figwidth())


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG that follows the reader's choice of light or dark mode."""
    file = io.StringIO()
    with rc_context(_LOOK):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL)
    svg = svg.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)").replace(NOTE, "var(--note)")
    look = (
        f"<style>:root{{--ink:{INK};--paper:{PAPER};--note:{NOTE}}}"
        f"@media (prefers-color-scheme:dark){{:root{{--ink:{DARK_INK};--paper:{DARK_PAPER};--note:{DARK_NOTE}}}}}"
        "</style>"
    )
    return re.sub(r"(<svg[^>]*>)", rf"\1{look}", svg, count=1)

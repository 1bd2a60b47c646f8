"""How every plot looks: colours, sizes, axes, and the two forms in which a figure is saved.

An SVG in a page takes the page's colours, light or dark. A PNG can't know the page that shows it, so it has its own
light paper, which is legible on either.
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

INK, PAPER, GREY = "#1c1c1c", "#fdfdfd", "#767676"
"""Text and axes; what is behind them; and what only helps to read, legible on both papers."""
DARK_INK, DARK_PAPER = "#e4e4e4", "#161616"
BLUE, ORANGE = "#1F7FC0", "#D55E00"
COLOURS = BLUE, ORANGE, "#009E73", "#CC79A7", INK
"""For colour-blind readers: those of Okabe and Ito's palette that have a contrast of 3 on either paper; the blue is
lighter than theirs."""
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
"""For prints without colour."""

WIDTH = 5.4
"""Inches; with text of 10 points, 15 pixels high where the picture is 600 pixels wide, and 9 on a phone."""
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
    "text.parse_math": False,  # names may hold what is taken for maths
    "svg.fonttype": "path",
    "svg.hashsalt": "gptstar",
}


P = ParamSpec("P")
F = TypeVar("F", bound=Figure | None)


def styled(draw: Callable[P, F]) -> Callable[P, F]:
    """Give all that a function draws this look, whatever the defaults are where its figure is shown."""

    @functools.wraps(draw)
    def within(*args: P.args, **kwargs: P.kwargs) -> F:
        with rc_context(_LOOK):
            figure = draw(*args, **kwargs)
            if figure is not None:
                figure.draw_without_rendering()  # ticks are made now, not where it is shown
            return figure

    return within


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=125, layout="constrained")


def tidy(axes: Axes, grid: Literal["x", "y"] = "y") -> Axes:
    """Leave only the lines that help to read values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    return axes


def styles() -> Iterator[dict[str, Any]]:
    """Yield a colour, a marker and a dash for each line of a plot, over and over."""
    for colour, marker, dash in zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False):
        yield {"color": colour, "marker": marker, "linestyle": dash}


def legend_below(figure: Figure, axes: Axes, title: str = "") -> None:
    """Name the lines of a plot under it, if there are several."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        columns = max(1, min(4, len(names), 54 // (max(map(len, names)) + 7)))
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
    """Write a PNG, 1,600 pixels wide."""
    with rc_context(_LOOK):
        figure.savefig(path, dpi=PIXELS / figure.get_figwidth())


def to_svg(figure: Figure) -> str:
    """The figure as an SVG whose ink and paper follow the reader's choice of light or dark."""
    file = io.StringIO()
    with rc_context(_LOOK):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL)
    svg = svg.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")
    look = (
        f"<style>:root{{--ink:{INK};--paper:{PAPER}}}"
        f"@media (prefers-color-scheme:dark){{:root{{--ink:{DARK_INK};--paper:{DARK_PAPER}}}}}</style>"
    )
    return re.sub(r"(<svg[^>]*>)", rf"\1{look}", svg, count=1)

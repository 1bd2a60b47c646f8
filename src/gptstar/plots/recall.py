"""Does a model find what stands far back? The share of right answers by the length of the text and the depth in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from gptstar.plots.style import BLUE, GREY, INK, PAPER, new_figure, styled

PER_ROW = 2
DARK = 0.8
"""The share of right answers from which a cell is dark enough for light text."""


@dataclass(frozen=True)
class RecallPanel:
    """One model.

    Attributes:
        trained_at: its training context.
        lengths, depths: ascending.
        rows: for each length, for each depth, the share of right answers; None where the model is undefined.
        chance: the share that a guess gets right.
    """

    name: str
    trained_at: int
    lengths: Sequence[int]
    depths: Sequence[float]
    rows: Sequence[Sequence[float | None]]
    chance: float
    learned: bool


@styled
def draw_recall(panels: Sequence[RecallPanel]) -> Figure:
    """Draw a panel for each model, with the percent of right answers in each cell."""
    columns = min(PER_ROW, len(panels))
    bands = math.ceil(len(panels) / columns)
    figure = new_figure(bands * 2.7 + 0.3)
    grid = figure.subplots(bands, columns, squeeze=False).flatten()
    for number, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        _draw_panel(axes, panel, is_small=columns > 1)
        if number % columns == 0:
            axes.set_ylabel("depth (1: next to the query)")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("length of the text / training context", fontsize=10)
    figure.suptitle("% of answers that are right", fontsize=11)
    return figure


def _draw_panel(axes: Axes, panel: RecallPanel, *, is_small: bool) -> None:
    shares = np.asarray([[math.nan if each is None else each for each in row] for row in panel.rows]).T
    colours = LinearSegmentedColormap.from_list("right", [PAPER, BLUE])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, origin="lower", aspect="auto")
    for (depth, length), share in np.ndenumerate(shares):
        text, colour = ("–", GREY) if math.isnan(share) else (f"{100 * share:.0f}", PAPER if share > DARK else INK)
        axes.text(length, depth, text, ha="center", va="center", color=colour, fontsize=9 if is_small else 10)
    axes.set_xticks(range(len(panel.lengths)), [f"{each / panel.trained_at:g}×" for each in panel.lengths])
    axes.set_yticks(range(len(panel.depths)), [f"{each:g}" for each in panel.depths])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    note = "" if panel.learned else "did not learn; "
    axes.set_title(f"{panel.name}\n{note}chance {100 * panel.chance:.0f}", fontsize=9)

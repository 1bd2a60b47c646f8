"""The speed of each arm in tokens per second."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from gptstar.plots.labels import short_names
from gptstar.plots.style import BLUE, GREY, new_figure, styled, tidy


@dataclass(frozen=True)
class Speeds:
    """Tokens per second of the runs of an arm."""

    name: str
    values: Sequence[float]


@styled
def draw_speeds(arms: Sequence[Speeds], label: str = "") -> Figure | None:
    """Draw a dot per run and a line at each arm's median, from zero on; return None if no speed was recorded."""
    drawn = [each for each in arms if each.values]
    if not drawn:
        return None
    figure = new_figure(1.1 + 0.36 * len(drawn))
    axes = tidy(figure.subplots(), grid="x")
    places = list(range(len(drawn) - 1, -1, -1))
    for place, arm in zip(places, drawn, strict=True):
        axes.plot(arm.values, [place] * len(arm.values), "o", color=BLUE, alpha=0.6, markersize=5)
        middle = median(arm.values)
        axes.plot([middle, middle], [place - 0.3, place + 0.3], color=GREY, linewidth=2)
    axes.set_yticks(places, short_names([each.name for each in drawn]))
    axes.set_ylabel(label)
    axes.set_ylim(-0.6, len(drawn) - 0.4)
    axes.set_xlim(0, 1.08 * max(max(each.values) for each in drawn))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel("tokens per second; a dot for each run, a line at the median", fontsize=10)
    return figure

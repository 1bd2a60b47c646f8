"""Scores of models compared with published ones, with one panel per metric."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from gptstar.plots.labels import power_text, short_names
from gptstar.plots.style import BLUE, GREY, ORANGE, WIDTH, new_figure, styled, tidy

PER_ROW = 2
MOST_PANELS = 24
LONGEST = 18
"""The most characters of a model's name."""
SPREAD, MOST_SPREAD = 5, 1000
"""The ratio of the largest to the smallest value that needs a logarithmic axis: for ratio metrics, and for others."""
LONG = 1e4
"""The value from which ticks of a logarithmic axis are powers, so that they don't overlap."""
TITLE = 12
"""Characters of a title per inch of the figure's width."""


@dataclass(frozen=True)
class Score:
    """The score of one model; its interval is NaN if there is none.

    Attributes:
        is_same_metric: whether the score is known to be of the panel's metric; otherwise it is drawn as a cross.
    """

    model: str
    value: float
    low: float = math.nan
    high: float = math.nan
    is_same_metric: bool = True


@dataclass(frozen=True)
class ScorePanel:
    """The measured and published scores of one metric of a task.

    Attributes:
        is_ratio: whether ratios of the metric matter, as for a perplexity.
        chance: the score of guessing, if it is known.
    """

    title: str
    metric: str
    higher_is_better: bool
    ours: Sequence[Score]
    published: Sequence[Score] = ()
    is_ratio: bool = False
    chance: float | None = None

    @property
    def is_logarithmic(self) -> bool:
        """Whether the values need a logarithmic axis to be legible."""
        values = [each.value for each in (*self.ours, *self.published) if math.isfinite(each.value)]
        return bool(values) and 0 < min(values) < max(values) / (SPREAD if self.is_ratio else MOST_SPREAD)


@styled
def draw_scores(panels: Sequence[ScorePanel], title: str = "") -> Figure | None:
    """Draw our scores with 95 % intervals above published ones, for at most 24 metrics; return None without scores."""
    drawn = panels[:MOST_PANELS]
    if not drawn:
        return None
    columns = min(PER_ROW, len(drawn))
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [1.1 + 0.21 * max(len(each.ours) + len(each.published) for each in row) for row in rows]
    figure = new_figure(sum(heights) + 0.6, width=3.2 * PER_ROW if columns > 1 else WIDTH)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid.flat, drawn, strict=False):
        _draw(axes, panel, title)
    for axes in grid.flat[len(drawn) :]:
        axes.set_axis_off()
    if title:
        figure.suptitle(textwrap.fill(title, int(TITLE * figure.get_figwidth())), fontsize=10)
    more = f"; {len(panels) - len(drawn)} more are not drawn" if len(panels) > len(drawn) else ""
    published = "\nhollow: published; ×: published, another metric or unclear which"
    is_shaded = any(_is_shaded(each) for each in drawn)
    legend = f"filled: measured here, with its 95 % interval{' (also shaded)' * is_shaded}{more}"
    figure.supxlabel(legend + (published if any(each.published for each in drawn) else ""), fontsize=9)
    return figure


def _is_shaded(panel: ScorePanel) -> bool:
    """Whether the interval of our only score is shaded down to the published ones."""
    return len(panel.ours) == 1 and math.isfinite(panel.ours[0].low)


def _our_names(panel: ScorePanel, title: str) -> list[str]:
    """Return the names of our scores; a long name that the title already begins with becomes `this model`."""
    names = [
        "this model" if len(each.model) > LONGEST and title.startswith(each.model) else each.model
        for each in panel.ours
    ]
    return short_names(names, LONGEST)


def _draw(axes: Axes, panel: ScorePanel, title: str) -> None:
    tidy(axes, grid="x")
    for place, score in enumerate(panel.ours):
        if not math.isfinite(score.value):
            axes.text(0.98, place, "∞", transform=axes.get_yaxis_transform(), color=BLUE, ha="right", va="center")
            continue
        reach = [[max(score.value - score.low, 0.0)], [max(score.high - score.value, 0.0)]]
        axes.errorbar(score.value, place, xerr=reach, color=BLUE, marker="o", markersize=5, capsize=3)
    if _is_shaded(panel):
        axes.axvspan(panel.ours[0].low, panel.ours[0].high, color=BLUE, alpha=0.1, linewidth=0)
    for place, score in enumerate(panel.published, start=len(panel.ours)):
        marker = "o" if score.is_same_metric else "x"
        axes.plot(score.value, place, linestyle="none", marker=marker, color=ORANGE, markerfacecolor="none")
    names = [*_our_names(panel, title), *(each.model for each in panel.published)]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label in axes.get_yticklabels()[: len(panel.ours)]:
        label.set(color=BLUE, fontweight="bold")
    axes.set_ylim(len(names) - 0.3, -0.6)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(f"{panel.metric}   {'better →' if panel.higher_is_better else '← better'}", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(x=0.08)
    _scale(axes, panel)
    if panel.chance is not None:
        axes.axvline(panel.chance, color=GREY, linestyle=":", linewidth=1.2)
        side = "right" if panel.chance > sum(axes.get_xlim()) / 2 else "left"  # the side with room in the panel
        near_axis = axes.get_xaxis_transform()
        axes.text(panel.chance, 0.01, " chance ", transform=near_axis, fontsize=8, color=GREY, ha=side)


def _scale(axes: Axes, panel: ScorePanel) -> None:
    if not panel.is_logarithmic:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return
    axes.set_xscale("log")
    values = [each.value for each in (*panel.ours, *panel.published) if math.isfinite(each.value)]
    is_narrow = max(values) < 100 * min(values)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_narrow else (1,), numticks=6))
    is_long = max(values) >= LONG
    axes.xaxis.set_major_formatter(lambda value, _: power_text(value, as_power=is_long))
    axes.xaxis.set_minor_formatter(NullFormatter())

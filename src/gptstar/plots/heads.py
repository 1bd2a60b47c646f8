"""Which heads see beyond the training context? Their share of the weight there, and how it falls with distance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from gptstar.plots.labels import length_axis, power_text
from gptstar.plots.lines import Line
from gptstar.plots.style import BLUE, GREY, INK, ORANGE, PAPER, legend_below, new_figure, styled, styles, tidy

LEAST_SHARE = 1e-9
"""The bottom of the axis of shares."""
LEAST_ON_LINEAR = 1e-3
"""The least share up to which the axis is linear."""
LEAST_FELT = 2.0**-24
"""A share below changes no float32 sum of the size of 1."""
MOST_WITH_TEXT = 12
"""Columns of all maps up to which the cells have their figures."""
MOST_LABELS = 32
"""Names of columns that fit beside each other."""
PER_ROW = 3
"""Maps beside each other."""
SHARES = LinearSegmentedColormap.from_list("shares", [PAPER, BLUE])


@dataclass(frozen=True)
class HeadMap:
    """The heads of one model at one context length: `(layer, column)` of each.

    Attributes:
        shares: of the weight beyond the training context, from 0 to 1.
        blind: whether all of that weight is exactly zero.
        predicted_blind: of each column, by arithmetic.
    """

    title: str
    shares: Sequence[Sequence[float]]
    blind: Sequence[Sequence[bool]]
    predicted_blind: Sequence[bool] = ()


@dataclass(frozen=True)
class TailLine(Line):
    """The share of the weight at a distance and farther; where arithmetic puts it below `LEAST_FELT`, and at zero."""

    unfelt: float | None = None
    vanishes: float | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of maps: their names, and what these are."""

    names: Sequence[str]
    label: str


@styled
def draw_heads(
    maps: Sequence[HeadMap], columns: Columns, tails: Sequence[TailLine], trained_at: int, *, title: str, longest: int
) -> Figure:
    """Draw a map of heads for each length beyond the training context, and below them how weight falls with distance.

    Args:
        longest: the context length that the lines are of.
    """
    height = _height(maps) if maps else 0.0
    figure = new_figure(height + 3.5)
    figure.suptitle(title, fontsize=11)
    below: Figure | SubFigure = figure
    if maps:
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, 3.5])
        _draw_maps(parts[0], maps, columns)
        below = parts[1]
    _draw_tails(below, tails, trained_at, longest)
    return figure


@styled
def draw_head_maps(maps: Sequence[HeadMap]) -> Figure:
    """Draw a map for each of several models, of as many layers and heads each."""
    figure = new_figure(_height(maps) + 0.3)
    figure.suptitle("% of the weight beyond the training context", fontsize=11)
    n_heads = len(maps[0].shares[0])
    _draw_maps(figure, maps, Columns([str(head + 1) for head in range(n_heads)], "head"))
    return figure


def _label(label: str, maps: Sequence[HeadMap]) -> str:
    """What the columns are, and below it what the marks mean."""
    notes = ["×: all of it is zero"] if any(any(map(any, each.blind)) for each in maps) else []
    notes += ["orange bar: predicted to be zero"] if any(any(each.predicted_blind) for each in maps) else []
    return "\n".join([label, *(["; ".join(notes)] if notes else [])])


def _per_row(maps: Sequence[HeadMap]) -> int:
    return min(len(maps), PER_ROW, max(1, MOST_LABELS // len(maps[0].shares[0])))


def _height(maps: Sequence[HeadMap]) -> float:
    """Inches."""
    band = min(4.5, max(0.9, 0.26 * len(maps[0].shares)))
    return math.ceil(len(maps) / _per_row(maps)) * (band + 0.35) + 0.9


def _draw_maps(figure: Figure | SubFigure, maps: Sequence[HeadMap], columns: Columns) -> None:
    per_row = _per_row(maps)
    grid = figure.subplots(math.ceil(len(maps) / per_row), per_row, squeeze=False, sharey=True)
    panels = list(grid.flat)
    most = max(max(map(max, each.shares)) for each in maps) or 1.0
    scale = Normalize(0, most)
    n_layers, n_heads = len(maps[0].shares), len(maps[0].shares[0])
    has_text = n_heads * per_row <= MOST_WITH_TEXT
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    for axes, each in zip(panels, maps, strict=False):
        mesh = axes.pcolormesh(each.shares, cmap=SHARES, norm=scale, edgecolors=GREY, linewidth=0.3)
        for layer in range(n_layers):
            for head in range(n_heads):
                _mark_cell(axes, (layer, head), each, share_of_most=most, has_text=has_text)
        for head, is_blind in enumerate(each.predicted_blind):
            if is_blind:
                axes.plot([head + 0.08, head + 0.92], [n_layers, n_layers], color=ORANGE, linewidth=5, clip_on=False)
        axes.set_title(each.title, fontsize=9)
        skip = math.ceil(n_heads * per_row / MOST_LABELS)
        axes.set_xticks([head + 0.5 for head in range(0, n_heads, skip)], columns.names[::skip], fontsize=8)
        axes.tick_params(length=0)
        axes.tick_params(axis="x", rotation=90 if n_heads * per_row > 12 else 0)
        axes.spines[:].set_visible(False)
        step = math.ceil(n_layers / 12)
        axes.set_yticks([layer + 0.5 for layer in range(0, n_layers, step)], range(1, n_layers + 1, step), fontsize=8)
    panels[0].invert_yaxis()  # shared: the first layer is above
    for row in grid:
        row[0].set_ylabel("layer")
    figure.supxlabel(_label(columns.label, maps), fontsize=10)
    bar = figure.colorbar(mesh, ax=panels, fraction=0.06, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    bar.ax.tick_params(labelsize=8)


def _mark_cell(axes: Axes, at: tuple[int, int], of: HeadMap, *, share_of_most: float, has_text: bool) -> None:
    """Write a cell's percentage, or a cross where all of its weights are zero."""
    layer, head = at
    share = of.shares[layer][head]
    if of.blind[layer][head]:
        axes.plot(head + 0.5, layer + 0.5, "x", color=ORANGE, markersize=6 if has_text else 4, markeredgewidth=1.6)
    elif has_text:
        percent = 100 * share
        text = f"{percent:.0f}" if percent >= 9.5 else f"{percent:.1f}" if percent >= 0.095 else "<0.1"
        colour = PAPER if share > 0.6 * share_of_most else INK
        axes.text(head + 0.5, layer + 0.5, text, ha="center", va="center", fontsize=8, color=colour)


def _draw_tails(figure: Figure | SubFigure, tails: Sequence[TailLine], trained_at: int, longest: int) -> None:
    axes = tidy(figure.subplots())
    octaves = [2**power for power in range(longest.bit_length())]
    length_axis(axes, octaves[:: math.ceil(len(octaves) / 9)])
    notes: dict[str, str] = {}
    is_log = any(point.value < LEAST_ON_LINEAR for line in tails for point in line.points)
    for line, style in zip(tails, styles(), strict=False):
        shown = [point for point in line.points if point.value > 0]
        axes.plot([p.x for p in shown], [p.value for p in shown], label=line.name, markersize=4, linewidth=1.4, **style)
        predicted = {"color": style["color"], "markersize": 9, "markeredgewidth": 1.6, "clip_on": False}
        if is_log and line.unfelt is not None and line.unfelt <= longest:
            axes.plot(line.unfelt, LEAST_FELT, "o", markerfacecolor="none", **predicted | {"markersize": 13})
            notes["o"] = "ring: predicted to cross the dashed line"
        if is_log and line.vanishes is not None and line.vanishes <= longest:
            axes.plot(line.vanishes, LEAST_SHARE, "X", **predicted)
            notes["X"] = "cross: to be zero beyond"
    if is_log:
        axes.set_yscale("log")
        axes.axhline(LEAST_FELT, color=GREY, linestyle="--", linewidth=1)
        axes.text(1, LEAST_FELT, " below: changes no sum", color=GREY, fontsize=9, va="top")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value, as_power=value < 0.01)))
    axes.set_ylim((LEAST_SHARE, 2) if is_log else (0, 1.05))
    low, high = axes.get_xlim()
    axes.axvspan(trained_at, max(high, trained_at), color=GREY, alpha=0.13, linewidth=0)
    axes.set_xlim(low, high)
    axes.set_title(f"share of the weight at this distance and farther, of {longest:,} tokens", fontsize=9, loc="left")
    axes.set_xlabel(
        "\n".join(["distance (tokens); shaded: beyond the training context", "; ".join(notes.values())]).strip()
    )
    axes.set_ylabel("share of the weight")
    legend_below(figure, axes)  # type: ignore[arg-type]  # a part of a figure has legends too

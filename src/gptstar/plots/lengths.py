"""Loss against context length, and below it the paired change since the training context."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gptstar.plots.labels import length_axis
from gptstar.plots.lines import Point, draw_bars
from gptstar.plots.style import GREY, INK, NOTE, legend_below, new_figure, styled, styles, tidy

LEAST_HEIGHT = 0.2
"""The least height of an axis of losses in nats, so that noise does not look like a slope."""
MOST_ABOVE = 1.0
"""The space in nats above the highest loss within training contexts if a model fails beyond them."""
PER_ROW = 2


@dataclass(frozen=True)
class LengthLine:
    """The losses of a model, or the mean of an arm over seeds, at each context length, ascending.

    Attributes:
        name: the name of the model or arm.
        trained_at: the training context in tokens; None if it is unknown.
        losses: the losses at the context lengths.
        changes: the changes of the loss since the reference length, on the same targets, with their intervals.
        undefined: the lengths that the model can't read.
    """

    name: str
    trained_at: float | None
    losses: Sequence[Point]
    changes: Sequence[Point] = ()
    undefined: Sequence[int] = ()


@styled
def draw_lengths(
    lines: Sequence[LengthLine],
    title: str = "",
    *,
    unit: str = "nats per token",
    change: str = "change since the\ntraining context",
    legend: str = "",
    bars: str = "",
) -> Figure | None:
    """Draw losses, and their changes below; if arms share several training contexts, each of these gets a panel.

    A cross at the top marks lengths that a model can't read. `bars` says below the plot what the bars are. Return None
    if there are no losses.
    """
    if not any(each.losses or each.undefined for each in lines):
        return None
    panels = _panels(lines)
    style_of = dict(zip(dict.fromkeys(each.name for each in lines), styles(), strict=False))
    has_changes = any(each.changes for each in lines)
    figure, grid = _grid(len(panels), has_changes)
    if title:
        figure.suptitle(title, fontsize=11)
    for number, (of_panel, axes) in enumerate(zip(panels, grid, strict=True)):
        _draw_panel(axes, of_panel, style_of, is_one_of_several=len(panels) > 1)
        if number % PER_ROW == 0:
            axes[0].set_ylabel(f"loss ({unit})")
            if has_changes:
                axes[1].set_ylabel(f"{change}\n({unit})")
        axes[-1].set_xlabel("context read (tokens)")
    _limit(grid, lines, least=LEAST_HEIGHT / (1 if unit.startswith("nats") else 2))
    if len(style_of) > 1 or any(each.undefined for each in lines):
        _legend(figure, grid, lines, style_of, "\n".join(filter(None, [bars, legend])))
    elif bars:
        figure.supxlabel(bars, fontsize=9, color=NOTE)
    return figure


def _panels(lines: Sequence[LengthLine]) -> list[list[LengthLine]]:
    trained = list(dict.fromkeys(each.trained_at for each in lines))
    by_context = [[each for each in lines if each.trained_at == length] for length in trained]
    return by_context if max(map(len, by_context)) > 1 else [list(lines)]


def _grid(n_panels: int, has_changes: bool) -> tuple[Figure, list[list[Axes]]]:
    """Return for each panel the axes of losses, and below them of changes; axes of one kind share their limits."""
    columns = min(PER_ROW, n_panels)
    bands = math.ceil(n_panels / columns)
    heights = [2.0, 1.4] if has_changes else [2.4]
    figure = new_figure(bands * (sum(heights) + 0.8) + 0.5)
    cells = figure.add_gridspec(bands * len(heights), columns, height_ratios=heights * bands)
    grid: list[list[Axes]] = []
    for number in range(n_panels):
        band, column = divmod(number, columns)
        stack: list[Axes] = []
        for row in range(len(heights)):
            shared = {"sharey": grid[0][row] if grid else None, "sharex": stack[0] if stack else None}
            stack.append(tidy(figure.add_subplot(cells[band * len(heights) + row, column], **shared)))
        grid.append(stack)
    return figure, grid


def _draw_panel(
    axes: Sequence[Axes], lines: Sequence[LengthLine], style_of: dict[str, dict[str, Any]], *, is_one_of_several: bool
) -> None:
    losses = axes[0]
    characters = 26 if is_one_of_several else 48
    length_axis(losses, sorted({int(each) for line in lines for each in _lengths(line)}), characters)
    for number, line in enumerate(lines):
        style = style_of[line.name]
        shift = 2 ** (0.02 * (number - (len(lines) - 1) / 2))  # so that bars don't overlap
        draw_bars(losses, line.losses, line.name, style, shift)
        crosses = [0.97 - 0.04 * number] * len(line.undefined)
        near_axis = losses.get_xaxis_transform()
        losses.plot(line.undefined, crosses, "x", color=style["color"], transform=near_axis)
        if len(axes) > 1:
            draw_bars(axes[1], line.changes, None, style, shift)
    losses.margins(x=0.12)
    if len(lines) == 1 and not is_one_of_several:
        for point in lines[0].losses:
            text, colour = f"{point.value:.2f}", style_of[lines[0].name]["color"]
            side, shift = ("right", -6) if point is lines[0].losses[-1] else ("left", 6)  # inside the axis
            where = (point.x, point.value), (shift, 8)
            losses.annotate(text, *where, textcoords="offset points", ha=side, color=colour)
    if len(axes) > 1:
        axes[1].axhline(0, color=INK, linewidth=0.8)
        losses.tick_params(labelbottom=False)
    _mark_training(axes, lines, style_of, is_one_of_several)


def _lengths(line: LengthLine) -> Iterator[float]:
    yield from (each.x for each in line.losses)
    yield from line.undefined


def _mark_training(
    axes: Sequence[Axes], lines: Sequence[LengthLine], style_of: dict[str, dict[str, Any]], is_one_of_several: bool
) -> None:
    """Shade the training context, or mark where it ends for each model."""
    trained = {line.trained_at for line in lines}
    if trained == {None}:
        return
    (trained_at, *others) = trained
    low, high = axes[0].get_xlim()
    for panel in axes:
        if others or trained_at is None:
            for line in lines:
                if line.trained_at is not None:
                    colour = style_of[line.name]["color"]
                    panel.axvline(line.trained_at, color=colour, linestyle=":", linewidth=1.2, zorder=0)
        elif low < trained_at:
            panel.axvspan(low, trained_at, color=GREY, alpha=0.13, linewidth=0)
    axes[0].set_xlim(low, high)
    if others or trained_at is None:
        axes[0].set_title("dotted: where a model's training context ends", fontsize=9, color=NOTE, loc="left")
        return
    note = f"trained at {trained_at:,.0f}" if is_one_of_several else f"training context (up to {trained_at:,.0f})"
    height = 1.02 if is_one_of_several else 0.03  # above the lines of a small panel
    axes[0].text(0.02, height, note, transform=axes[0].transAxes, color=NOTE, fontsize=9)


def _limit(grid: Sequence[Sequence[Axes]], lines: Sequence[LengthLine], least: float) -> None:
    """Limit the axes to the losses within training contexts; the line of a model that fails beyond leaves the plot."""
    values = [point.value for line in lines for point in line.losses if math.isfinite(point.value)]
    if not values:
        return
    trained = [point.value for line in lines for point in line.losses if line.trained_at and point.x <= line.trained_at]
    highest = max(trained, default=max(values))
    low = min(values)
    most = max(MOST_ABOVE, 1.5 * (highest - low))
    ends = [end for line in lines for point in line.losses for end in (point.low, point.high) if math.isfinite(end)]
    low, high = min([low, *ends]), min(max([max(values), *ends]), highest + most)
    middle, half = (low + high) / 2, max(0.6 * (high - low), least / 2)
    grid[0][0].set_ylim(middle - half, middle + half)
    if len(grid[0]) > 1:
        bottom, top = grid[0][1].get_ylim()
        grid[0][1].set_ylim(max(bottom, -most), min(top, most))


def _legend(
    figure: Figure,
    grid: Sequence[Sequence[Axes]],
    lines: Sequence[LengthLine],
    style_of: dict[str, dict[str, Any]],
    title: str,
) -> None:
    """Draw a legend with every line once, including those that are missing in the first panel."""
    undefined = {each.name for each in lines if each.undefined}
    names = [f"{name} (×: undefined)" if name in undefined else name for name in style_of]
    axes = grid[0][0]
    for handle in axes.containers:
        handle.set_label("_")
    for name, style in zip(names, style_of.values(), strict=True):
        axes.plot([], [], label=name, **style)
    if len(names) == 1:
        figure.legend(loc="outside lower center", frameon=False)
    legend_below(figure, axes, title)

"""The effects of choices, with their 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.figure import Figure

from gptstar.plots.labels import level_texts, short_names
from gptstar.plots.style import BLUE, INK, NOTE, PAPER, new_figure, styled, tidy


@dataclass(frozen=True)
class EffectPoint:
    """The effect of one level of a factor against another, with its interval; NaN if there is none."""

    factor: str
    level: object
    against: object
    value: float
    low: float
    high: float
    is_significant: bool


@styled
def draw_effects(points: Sequence[EffectPoint], outcome: str) -> Figure | None:
    """Draw one row per effect, under its factor and reference level; return None if there is no effect."""
    if not points:
        return None
    rows: list[tuple[str, EffectPoint | None]] = []
    for (factor, against), group in groupby(points, key=lambda each: (each.factor, each.against)):
        of_factor = list(group)
        *levels, reference = level_texts([*(each.level for each in of_factor), against])
        (reference,) = short_names([reference])
        rows.append((f"{factor}, against {reference}:", None))
        rows += zip(short_names(levels), of_factor, strict=True)
    figure = new_figure(1.3 + 0.3 * len(rows))
    axes = tidy(figure.subplots(), grid="x")
    places = range(len(rows) - 1, -1, -1)
    for place, (label, point) in zip(places, rows, strict=True):
        if point is None:
            axes.text(0.01, place, label, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=NOTE)
            continue
        colour = BLUE if point.is_significant else NOTE
        reach = [[point.value - point.low], [point.high - point.value]] if not math.isnan(point.low) else None
        inside = BLUE if point.is_significant else PAPER
        axes.errorbar(point.value, place, xerr=reach, fmt="o", color=colour, capsize=3, mfc=inside)
    axes.axvline(0, color=INK, linewidth=0.8)
    named = [(place, label) for place, (label, point) in zip(places, rows, strict=True) if point is not None]
    axes.set_yticks([place for place, _ in named], [label for _, label in named])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.margins(x=0.1)
    explained = "95 % intervals over seeds; filled: significant, open: not significant"
    figure.supxlabel(f"change of {outcome}\n{explained}", fontsize=10)
    return figure

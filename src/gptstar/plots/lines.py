"""The data of plots: points with intervals, and lines of points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """A value at a position on the x axis, with its interval or range; NaN if there is none."""

    x: float
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Line:
    """A named line of points."""

    name: str
    points: Sequence[Point]


def draw_bars(axes: Axes, points: Sequence[Point], name: str | None, style: dict[str, Any], shift: float = 1) -> None:
    """Draw a line through points, with bars for their intervals (matplotlib skips NaN)."""
    values = [each.value for each in points]
    reach = [
        [max(each.value - each.low, 0.0) for each in points],
        [max(each.high - each.value, 0.0) for each in points],
    ]
    places = [each.x * shift for each in points]
    axes.errorbar(places, values, reach, label=name, capsize=3.5, markersize=4, linewidth=1.4, **style)

"""What plots are given: values with intervals, and lines of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from matplotlib.axes import Axes


class Estimate(Protocol):
    """A value with its interval, whose ends are NaN where there is none."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


@dataclass(frozen=True)
class Point:
    """A value at a place, with its interval or range; NaN where there is none."""

    x: float
    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, x: float, estimate: Estimate) -> "Point":
        """An estimate at a place."""
        return cls(x, estimate.value, estimate.low, estimate.high)


@dataclass(frozen=True)
class Line:
    """A named line."""

    name: str
    points: Sequence[Point]


def draw_bars(axes: Axes, points: Sequence[Point], name: str | None, style: dict[str, Any], shift: float = 1) -> None:
    """Draw a line through points, with bars where there are intervals (matplotlib leaves out what is NaN)."""
    values = [each.value for each in points]
    reach = [
        [max(each.value - each.low, 0.0) for each in points],
        [max(each.high - each.value, 0.0) for each in points],
    ]
    places = [each.x * shift for each in points]
    axes.errorbar(places, values, reach, label=name, capsize=3, markersize=5, linewidth=1.4, **style)

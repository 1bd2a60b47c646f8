"""Short labels: numbers with just the digits in which they differ, names without their common parts."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, NullLocator

from gptstar.terminal import shortened

LONGEST = 24
"""The most characters of a name in a plot."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def level_texts(levels: Sequence[Any]) -> list[str]:
    """Format the levels of a factor for tables and plots: numbers with three digits, or as many as tell them apart."""
    numbers = {each for each in levels if isinstance(each, float) and math.isfinite(each)}
    digits = 3
    while digits < 17 and len({f"{each:.{digits}g}" for each in numbers}) < len(numbers):
        digits += 1
    return [_text(each, digits) for each in levels]


def _text(level: Any, digits: int) -> str:
    if isinstance(level, int) and not isinstance(level, bool):
        return f"{level:,}"
    return re.sub(r"e([+-])0+", r"e\1", f"{level:.{digits}g}") if isinstance(level, float) else str(level)


def short_names(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Shorten names by their common folders or first words, and by the middle of long ones; all remain distinct."""
    words = [re.split("(?<=[-/])", name) for name in names]
    shared = 0
    if len(set(names)) > 1:
        shared = next(n for n in range(max(map(len, words))) if len({tuple(each[: n + 1]) for each in words}) > 1)
    rest = ["".join(each[shared:]) for each in words]
    for room in range(longest, max(map(len, rest), default=0) + 1):
        short = [shortened(name, room) for name in rest]
        if len(set(short)) == len(set(rest)):
            return short
    return rest


def power_text(value: float, *, as_power: bool = False) -> str:
    """Format a tick of a logarithmic axis: 0.01, 500, 20,000, 10⁶, or with `as_power` always as a power."""
    exponent = math.floor(math.log10(value) + 1e-9)
    if -4 < exponent < 5 and not as_power:
        return f"{value:,.10g}"
    factor = round(value / 10.0**exponent)
    return ("" if factor == 1 else f"{factor}×") + "10" + str(exponent).translate(SUPERSCRIPTS)


def tokens_axis(axes: Axes) -> None:
    """Label an axis of tokens with 30k, 1.5M and 26B."""
    engineering = EngFormatter(sep="")

    def short(tokens: float, _: float = 0) -> str:
        return str(engineering(tokens)).replace("G", "B")

    axes.xaxis.set_major_formatter(short)
    axes.set_xlabel("tokens")


def scale_for(values: Sequence[float]) -> str:
    """Return the scale on which the values are spaced most evenly: `linear`, or `log` to base `2` or `10`.

    Two values get a logarithmic scale from a ratio of 3.
    """
    places = sorted(set(values))
    if len(places) < 2 or places[0] <= 0:
        return "linear"
    if all(float(each).is_integer() and int(each) & (int(each) - 1) == 0 for each in places):
        return "log2"
    if len(places) == 2:
        return "log10" if places[1] >= 3 * places[0] else "linear"
    ratios = [math.log(after / before) for before, after in pairwise(places)]
    steps = [after - before for before, after in pairwise(places)]
    return "log10" if _unevenness(ratios) < _unevenness(steps) else "linear"


def _unevenness(gaps: Sequence[float]) -> float:
    mean = sum(gaps) / len(gaps)
    return sum((each - mean) ** 2 for each in gaps) ** 0.5 / mean


def factor_axis(axes: Axes, values: Sequence[float]) -> None:
    """Set the scale of the x axis that suits the values, with a tick at each of them."""
    places = sorted(set(values))
    scale = scale_for(places)
    if scale == "linear":
        axes.set_xscale("linear")
    else:
        axes.set_xscale("log", base=int(scale.removeprefix("log")))
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FixedFormatter(level_texts(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(places) > 7:
        axes.tick_params(axis="x", rotation=45)


def length_axis(axes: Axes, places: Sequence[int], most_characters: int = 48) -> None:
    """Set a logarithmic axis of context lengths, with a tick at each: in thousands if whole numbers would not fit.

    Args:
        most_characters: what fits side by side along the axis.
    """
    whole = [f"{each:,}" for each in sorted(places)]
    fits = len(whole) * (max(map(len, whole), default=0) + 1) <= most_characters
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(places)))
    axes.xaxis.set_major_formatter(FixedFormatter(whole if fits else [_in_thousands(each) for each in sorted(places)]))
    axes.xaxis.set_minor_locator(NullLocator())


def _in_thousands(length: int) -> str:
    return f"{length / 1024:g}k" if length >= 1024 else str(length)

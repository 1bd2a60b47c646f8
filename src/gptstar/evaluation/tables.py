"""Studies of context length as tables, for the terminal and as Markdown."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gptstar.evaluation.length.curve import Curve
from gptstar.evaluation.length.figures import LengthResult
from gptstar.evaluation.statistics.intervals import Interval

UNDEFINED = "undefined"


def length_table(curve: Curve, title: str | None = None) -> Table:
    """One model at each context length, for the terminal: figures with half the width of their 95 % intervals."""
    table = Table(title=Text(title or f"{curve.name}, ± half of the 95 % interval"))
    change = "change" if curve.reference is None else f"change vs {curve.reference:,}"
    for column in ("context", "×", "loss", change, "perplexity", "bits/byte"):
        table.add_column(column, justify="right")
    for result in curve.lengths:
        table.add_row(f"{result.context_length:,}", _multiple(result, curve), *_cells(result))
    return table


def comparison_table(curves: Sequence[Curve], *, bits: bool = False) -> Table:
    """Several models at each context length, for the terminal.

    Args:
        bits: bits per byte in place of loss.
    """
    table = Table(title=f"{'bits per byte' if bits else 'loss'}, ± half of the 95 % interval")
    table.add_column("context", justify="right")
    for curve in curves:
        table.add_column(Text(curve.name), justify="right")
    for results in zip(*(curve.lengths for curve in curves), strict=True):
        figures = [result.bits_per_byte if bits else result.loss for result in results]
        cells = [UNDEFINED if each is None else f"{each.value:.3f}{_half(each.low, each.high, 3)}" for each in figures]
        table.add_row(f"{results[0].context_length:,}", *cells)
    return table


def cost_line(curve: Curve) -> str:
    """What reading took, and how it grows with the context."""
    there = [result for result in curve.lengths if result.seconds is not None]
    each = "; ".join(
        f"{result.context_length:,}: {result.seconds:.1f} s, {(result.memory or 0) / 1e9:.2f} GB" for result in there
    )
    growths = ((curve.time_growth, "time"), (curve.memory_growth, "memory"))
    said = ", ".join(f"{what} as T^{power:.2f}" for power, what in growths if math.isfinite(power))
    return f"{each}; a window of T tokens takes {said}" if said else each


def length_markdown(curves: Sequence[Curve], head: Sequence[str]) -> str:
    """All models of a study, with whole intervals.

    Args:
        head: lines about the text and the protocol, before the tables.
    """
    lines = ["# Loss against context length", "", *head]
    for curve in curves:
        change = "change" if curve.reference is None else f"change against {curve.reference:,}"
        columns = ("context", "mean context", "tokens", "loss", change, "p", "perplexity", "bits/byte", "s", "GB")
        lines += ["", f"## {curve.name}", "", f"Intervals are of 95 %, over {curve.units}.", ""]
        if curve.reference is None:
            lines[-2] = "The published estimator has no intervals."
        lines += [f"| {' | '.join(columns)} |", f"|{' ---: |' * len(columns)}"]
        for result in curve.lengths:
            lines.append(f"| {' | '.join(_markdown_cells(result))} |")
        lines += ["", cost_line(curve)]
        if curve.positions:
            lines += ["", "| tokens before a target | targets | loss |", "| ---: | ---: | ---: |"]
            lines += [f"| {p.first:,} to {p.last:,} | {p.tokens:,} | {_whole(p.loss, 4)} |" for p in curve.positions]
    return "\n".join(lines) + "\n"


def _multiple(result: LengthResult, curve: Curve) -> str:
    return f"{result.context_length / curve.trained_at:.4g}" if curve.trained_at else ""


def _cells(result: LengthResult) -> list[str]:
    if result.loss is None or result.perplexity is None:
        return [UNDEFINED, "", "", ""]
    change = ""
    if result.change is not None:
        change = f"{result.change.difference:+.3f}{_half(result.change.low, result.change.high, 3)}"
    bits = f"{result.bits_per_byte.value:.3f}" if result.bits_per_byte else "unknown"
    loss = f"{result.loss.value:.3f}{_half(result.loss.low, result.loss.high, 3)}"
    perplexity = result.perplexity.value
    return [loss, change, f"{perplexity:,.1f}" if perplexity < 1e6 else f"{perplexity:.2e}", bits]


def _half(low: float, high: float, digits: int) -> str:
    width = (high - low) / 2
    return f" ± {width:.{digits}f}" if math.isfinite(width) else ""


def _markdown_cells(result: LengthResult) -> list[str]:
    first = [f"{result.context_length:,}", f"{result.mean_context:,.0f}", f"{result.tokens:,}"]
    if result.loss is None or result.perplexity is None:
        return [*first, UNDEFINED, *[""] * 6]
    change = p = ""
    if result.change is not None:
        paired = result.change
        change = _whole(Interval(paired.difference, paired.low, paired.high, paired.test), 4, "+")
        p = f"{paired.p:.2g}" if math.isfinite(paired.p) else ""
    bits = _whole(result.bits_per_byte, 4) if result.bits_per_byte else "unknown"
    cost = [f"{result.seconds or 0:.1f}", f"{(result.memory or 0) / 1e9:.2f}"]
    return [*first, _whole(result.loss, 4), change, p, _whole(result.perplexity, 2), bits, *cost]


def _whole(interval: Interval, digits: int, sign: str = "") -> str:
    value = f"{interval.value:{sign}.{digits}f}"
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return value
    return f"{value} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"

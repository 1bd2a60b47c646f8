"""Studies of context length as tables, for the terminal and as Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from gptstar.evaluation.statistics.intervals import Interval
from gptstar.evaluation.statistics.paired import paired_ratio
from gptstar.terminal import in_markdown

if TYPE_CHECKING:  # they import torch, which `gptstar compare` need not wait for
    from gptstar.evaluation.length.curve import Curve
    from gptstar.evaluation.length.figures import LengthResult

UNDEFINED = "undefined"
MOST_DIGITS = 8
"""Digits after the point of a figure whose interval is narrow."""


def length_table(curve: "Curve", title: str | None = None) -> Table:
    """One model at each context length, for the terminal: figures with half the width of their 95 % intervals."""
    table = Table(title=Text(title or f"{curve.name}, ± half of the 95 % interval"))
    change = "change" if curve.reference is None else f"change vs {curve.reference:,}"
    for column in ("context", "×", "loss", change, "perplexity", "bits/byte"):
        table.add_column(column, justify="right")
    for result in curve.lengths:
        multiple = f"{result.context_length / curve.trained_at:.4g}" if curve.trained_at else ""
        cells = [f"{result.context_length:,}", multiple, half_text(result.loss)]
        if result.perplexity is not None:
            perplexity = result.perplexity.value
            shown = f"{perplexity:,.1f}" if perplexity < 1e6 else f"{perplexity:.2e}"
            bits = f"{result.bits_per_byte.value:.3f}" if result.bits_per_byte else "unknown"
            cells += [half_text(_change(result), "+") if result.change else "", shown, bits]
        table.add_row(*cells)
    return table


def comparison_table(curves: "Sequence[Curve]", *, bits: bool = False) -> Table:
    """Several models at each context length, by their loss or bits per byte, for the terminal.

    Two that scored the same targets have the paired difference of their losses too.
    """
    table = Table(title=f"{'bits per byte' if bits else 'loss'}, ± half of the 95 % interval")
    table.add_column("context", justify="right")
    for curve in curves:
        table.add_column(Text(curve.name), justify="right")
    counts, *others = [(curve.targets, curve.counts) for curve in curves]
    is_paired = bool(counts[0] and counts[1]) and others == [counts] and not bits
    if is_paired:
        table.add_column("second − first", justify="right")
    for results in zip(*(curve.lengths for curve in curves), strict=True):
        cells = [half_text(result.bits_per_byte if bits else result.loss) for result in results]
        if is_paired and all(result.sums for result in results):
            paired = paired_ratio(results[0].sums, results[1].sums, counts[1])
            cells.append(half_text(Interval(paired.difference, paired.low, paired.high, paired.test), "+"))
        table.add_row(f"{results[0].context_length:,}", *cells)
    return table


def cost_line(curve: "Curve") -> str:
    """What reading took, and how it grows with the context."""
    costs = "; ".join(
        f"{result.context_length:,}: {result.seconds:.1f} s, {(result.memory or 0) / 1e9:.2f} GB"
        for result in curve.lengths
        if result.seconds is not None
    )
    powers = (("time", curve.time_growth), ("memory", curve.memory_growth))
    growth = ", ".join(f"{name} as T^{power:.2f}" for name, power in powers if math.isfinite(power))
    return f"{costs}; a window of T tokens takes {growth}" if growth else costs


def length_markdown(curves: "Sequence[Curve]", head: Sequence[str]) -> str:
    """All models of a study, with whole intervals, below the lines of `head` about the text and the protocol."""
    lines = ["# Loss against context length", "", *head]
    for curve in curves:
        change = "change" if curve.reference is None else f"change against {curve.reference:,}"
        columns = ["context", "mean context", "tokens", "loss", change, "p", "perplexity", "bits/byte", "s", "GB"]
        lines += ["", f"## {curve.name}", "", f"Intervals are of 95 %, over {curve.units}.", ""]
        if curve.reference is None:
            lines[-2] = "The published estimator has no intervals."
        lines += [*markdown_table(columns, map(_markdown_cells, curve.lengths)), "", cost_line(curve)]
        if curve.positions:
            columns = ["tokens before a target", "targets", "loss"]
            rows = [(f"{p.first:,} to {p.last:,}", f"{p.tokens:,}", figure_text(p.loss, 4)) for p in curve.positions]
            lines += ["", *markdown_table(columns, rows)]
    return in_markdown("\n".join(lines)) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 0) -> list[str]:
    """The lines of a Markdown table, with the first `n_left` columns aligned to the left, the others to the right."""
    rule = ["---" if number < n_left else "---:" for number in range(len(header))]
    lines = []
    for row in (header, rule, *rows):
        cells = [" ".join(cell.splitlines()).replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def half_text(interval: Interval | None, sign: str = "") -> str:
    """A figure with half the width of its interval."""
    if interval is None:
        return UNDEFINED
    value, half = signed(interval.value, 3, sign), (interval.high - interval.low) / 2
    return f"{value} ± {half:.3f}" if math.isfinite(half) else value


def _change(result: "LengthResult") -> Interval | None:
    """The change of a result's loss against the reference."""
    paired = result.change
    return None if paired is None else Interval(paired.difference, paired.low, paired.high, paired.test)


def _markdown_cells(result: "LengthResult") -> list[str]:
    cells = [f"{result.context_length:,}", f"{result.mean_context:,.0f}", f"{result.tokens:,}"]
    if result.loss is None or result.perplexity is None:
        return [*cells, UNDEFINED, *[""] * 6]
    change = _change(result)
    cells += [figure_text(result.loss, 4), figure_text(change, 4, "+") if change else ""]
    cells.append(f"{result.change.p:.2g}" if result.change and math.isfinite(result.change.p) else "")
    cells += [
        figure_text(result.perplexity, 2),
        figure_text(result.bits_per_byte, 4) if result.bits_per_byte else "unknown",
    ]
    return [*cells, f"{result.seconds or 0:.1f}", f"{(result.memory or 0) / 1e9:.2f}"]


def figure_text(interval: Interval, digits: int, sign: str = "") -> str:
    """A figure with its interval, with more digits where that is narrow."""
    width = interval.high - interval.low
    if width > 0 and math.isfinite(width):
        digits = min(MOST_DIGITS, max(digits, 1 - math.floor(math.log10(width))))
    value, low, high = (signed(each, digits, sign) for each in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]" if math.isfinite(width) else value


def signed(value: float, digits: int, sign: str) -> str:
    """A figure with the sign that sentences have, and none for a negative zero but what `sign` asks for."""
    return f"{value:{sign}z.{digits}f}".replace("-", "−")

"""Tables of length studies, for the terminal and as Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from gptstar.evaluation.statistics.intervals import Interval
from gptstar.evaluation.statistics.paired import paired_ratio
from gptstar.terminal import in_markdown

if TYPE_CHECKING:  # they import torch, which would delay `gptstar compare`
    from gptstar.evaluation.length.curve import Curve
    from gptstar.evaluation.length.figures import LengthResult

UNDEFINED = "undefined"
MOST_DIGITS = 8
"""Digits after the decimal point of a figure with a narrow interval."""


def length_table(curve: "Curve", title: str | None = None) -> Table:
    """Return one model's figures at each context length for the terminal, ± half the width of their 95 % intervals."""
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
    """Return several models' loss or bits per byte at each context length, for the terminal.

    Two models that scored the same targets also get the paired difference of their losses.
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
    """Return a line with the time and memory at each context length, and how they grow."""
    costs = "; ".join(
        f"{result.context_length:,}: {result.seconds:.1f} s, {(result.memory or 0) / 1e9:.2f} GB"
        for result in curve.lengths
        if result.seconds is not None
    )
    powers = (("time", curve.time_growth), ("memory", curve.memory_growth))
    growth = ", ".join(f"{name} as T^{power:.2f}" for name, power in powers if math.isfinite(power))
    return f"{costs}; a window of T tokens takes {growth}" if growth else costs


def length_markdown(curves: "Sequence[Curve]", head: Sequence[str]) -> str:
    """Return all models of a study with full intervals as Markdown, below the lines `head` on text and protocol."""
    lines = ["# Loss against context length", "", *head]
    for curve in curves:
        change = "change" if curve.reference is None else f"change against {curve.reference:,}"
        columns = ["context", "mean context", "tokens", "loss", change, "p", "perplexity", "bits/byte", "s", "GB"]
        lines += ["", f"## {curve.name}", "", f"Intervals are of 95 %, over {curve.units}.", ""]
        if curve.reference is None:
            lines[-2] = "The published estimator has no confidence intervals."
        lines += [*markdown_table(columns, map(_markdown_cells, curve.lengths)), "", cost_line(curve)]
        if curve.positions:
            columns = ["tokens before a target", "targets", "loss"]
            rows = [(f"{p.first:,} to {p.last:,}", f"{p.tokens:,}", figure_text(p.loss, 4)) for p in curve.positions]
            lines += ["", *markdown_table(columns, rows)]
    return in_markdown("\n".join(lines)) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 0) -> list[str]:
    """Return the lines of a Markdown table; the first `n_left` columns are left-aligned, the others right-aligned."""
    rule = ["---" if number < n_left else "---:" for number in range(len(header))]
    lines = []
    for row in (header, rule, *rows):
        cells = [" ".join(cell.splitlines()).replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def half_text(interval: Interval | None, sign: str = "") -> str:
    """Format a figure ± half the width of its interval; a signed one with enough digits to show its sign."""
    if interval is None:
        return UNDEFINED
    is_hidden = bool(sign) and 5e-5 <= abs(interval.value) < 5e-4
    value, half = signed(interval.value, 4 if is_hidden else 3, sign), (interval.high - interval.low) / 2
    return f"{value} ± {half:.3f}" if math.isfinite(half) else value


def _change(result: "LengthResult") -> Interval | None:
    """Return the change of a result's loss from the reference length."""
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
    """Format a figure with its interval, with more digits if that is narrow."""
    width = interval.high - interval.low
    if width > 0 and math.isfinite(width):
        digits = min(MOST_DIGITS, max(digits, 1 - math.floor(math.log10(width))))
    value, low, high = (signed(each, digits, sign) for each in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]" if math.isfinite(width) else value


def signed(value: float, digits: int, sign: str) -> str:
    """Format a number with a typographic minus, and without a minus for a value that rounds to zero."""
    return f"{value:{sign}z.{digits}f}".replace("-", "−")

"""Comparisons as tables: for the terminal, in 80 columns, as Markdown, and as plain values for JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from gptstar.evaluation.compare import PRELIMINARY, Comparisons, Row, letter
from gptstar.evaluation.statistics.effects import LEVEL
from gptstar.evaluation.tables import markdown_table, signed
from gptstar.terminal import in_markdown, shortened

COLUMNS = ("task", "metric", "A", "B", "B − A or B / A", "95 % interval", "p", "Holm", "items", "verdict")

VERDICTS = f"Significant is p < {LEVEL}, preliminary p < {PRELIMINARY}, adjusted by Holm's method."
UNADJUSTED = "p in brackets is not adjusted."

GAP, LEAST_NAME = 2, 8
"""Columns of a terminal between those of a table, and that a task's name keeps."""

WIDE = 110
"""Columns of a terminal in which the figures of A and B fit too."""


def print_comparisons(found: Comparisons, console: Console, *, all_metrics: bool = False) -> None:
    """Print a legend, a table for each result but the reference, and the notes.

    Args:
        all_metrics: also those of a task that come after its first, which have no adjusted p.
    """
    lines: list[str | Table] = []
    for number, name in enumerate(found.names):
        place = f"{letter(number)}: "
        after = "" if number else " (the reference)"
        lines.append(place + shortened(name, console.width - len(place + after)) + after)
    for number, rows in enumerate(found.rows, start=1):
        table = _table(found, letter(number), rows, console.width, all_metrics=all_metrics)
        lines += ["", _heading(found, letter(number), rows), table]
    brackets = [UNADJUSTED] if any(not row.primary and row.p is not None for rows in found.rows for row in rows) else []
    for line in (*lines, "", VERDICTS, *(brackets if all_metrics else []), *found.notes):
        console.print(line, highlight=False, markup=False)


def _heading(found: Comparisons, of_b: str, rows: tuple[Row, ...]) -> str:
    if found.kind == "tasks":
        return f"{of_b} minus A; perplexities {of_b} / A"
    return f"{of_b} minus A, {'bits per byte' if rows[0].metric == 'bits_per_byte' else 'loss in nats per token'}"


def _table(found: Comparisons, of_b: str, rows: tuple[Row, ...], width: int, *, all_metrics: bool) -> Table:
    """A table no wider than the terminal: the names of tasks give way, and figures are never cut."""
    is_length = found.kind == "length"
    has_values, has_items = width >= WIDE or is_length, width >= WIDE
    tested = {row.task for row in rows if row.primary}
    values, items = ("A", of_b) if has_values else (), ("items",) if has_items else ()
    header = ["context" if is_length else "task", *values, f"{of_b} − A", "95 % interval", "Holm p", *items, "verdict"]
    lines = []
    for row in (row for row in rows if row.primary or all_metrics or not (row.is_member or row.task in tested)):
        task, metric, a, b, change, interval, p, adjusted, n_items = _cells(row)
        name = task if is_length else f"{task} {metric.replace('perplexity', 'ppl')}"
        figures = [f"{loss:.{3 if loss < 10 else 2}f}" for loss in (row.a, row.b)] if is_length else [a, b]
        p = adjusted if row.primary else f"({p})" if p else ""
        cells = [*(figures if has_values else []), change, interval, p, *([n_items] if has_items else [])]
        lines.append([name, *cells, row.verdict])
    others = [max(map(len, cells)) for cells in list(zip(header, *lines, strict=True))[1:]]
    room = max(LEAST_NAME, width - sum(others) - GAP * len(others))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for column, least in zip(header, [0, *others], strict=True):
        side: JustifyMethod = "left" if column in ("task", "verdict") else "right"
        table.add_column(column, justify=side, no_wrap=True, min_width=least)
    for name, *cells in lines:
        table.add_row(Text(shortened(name, room)), *map(Text, cells))
    return table


def comparison_markdown(found: Comparisons) -> str:
    """The same as Markdown, with all metrics, without a newline at its end."""
    parts = [", ".join(f"{letter(number)}: {name}" for number, name in enumerate(found.names))]
    for number, rows in enumerate(found.rows, start=1):
        header = [each.replace("B", letter(number)) for each in COLUMNS]
        cells = [(*_cells(row), row.verdict) for row in rows]
        parts.append("\n".join(markdown_table(header, cells, n_left=2)))
    return in_markdown("\n\n".join((*parts, VERDICTS, *found.notes)))


def comparison_tree(found: Comparisons) -> dict[str, Any]:
    """The same as plain values: `model` of a row is the name of what is compared with the reference, `a`."""
    rows = [
        {"model": name} | asdict(row) | {"verdict": row.verdict}
        for name, of_one in zip(found.names[1:], found.rows, strict=True)
        for row in of_one
    ]
    pair = {"b": found.names[1]} if len(found.names) == 2 else {}
    return {"kind": found.kind, "a": found.names[0], **pair, "names": found.names, "rows": rows, "notes": found.notes}


def records(found: Comparisons) -> Iterator[dict[str, Any]]:
    """A line of a frame for each row."""
    for each in comparison_tree(found)["rows"]:
        is_length = found.kind == "length"
        place = {"task": "" if is_length else each["task"], "context_length": int(each["task"]) if is_length else None}
        yield {"kind": found.kind, "reference": found.names[0], **each, **place}


def _cells(row: Row) -> tuple[str, ...]:
    digits = 4 if row.kind in ("mean", "bits_per_byte") else 2
    change = signed(row.difference, digits, "+") if row.ratio is None else f"× {_ratio(row.ratio)}"
    ends = () if row.low is None or row.high is None else (row.low, row.high)
    interval = " to ".join(signed(end, digits, "+") if row.ratio is None else _ratio(end) for end in ends)
    better = "↑" if row.higher_is_better else "↓"
    p, adjusted = ("" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}" for p in (row.p, row.p_holm))
    figures = (f"{row.a:.{digits}f}", f"{row.b:.{digits}f}", change, interval)
    task = f"{int(row.task):,}" if row.task.isdecimal() else row.task
    return task, f"{row.metric} {better}", *figures, p, adjusted, f"{row.items:,}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.{'3f' if 0.1 <= ratio < 10 else '3g'}}"

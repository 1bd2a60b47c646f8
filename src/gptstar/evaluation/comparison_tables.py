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
"""The space between columns of a table, and the least width of a task's name, in characters."""

WIDE = 110
"""The width of a terminal, in characters, from which the values of A and B are shown too."""


def print_comparisons(comparisons: Comparisons, console: Console, *, all_metrics: bool = False) -> None:
    """Print a legend, a table for each result but the reference, and the notes.

    Args:
        all_metrics: whether to show all metrics of a task; those after the first have no adjusted p.
    """
    lines: list[str | Table] = []
    for number, name in enumerate(comparisons.names):
        place = f"{letter(number)}: "
        after = "" if number else " (the reference)"
        lines.append(place + shortened(name, console.width - len(place + after)) + after)
    for number, rows in enumerate(comparisons.rows, start=1):
        table = _table(comparisons, letter(number), rows, console.width, all_metrics=all_metrics)
        lines += ["", _heading(comparisons, letter(number), rows), table]
    brackets = (
        [UNADJUSTED] if any(not row.primary and row.p is not None for rows in comparisons.rows for row in rows) else []
    )
    verdicts = [VERDICTS] if comparisons.is_tested else []
    for line in (*lines, "", *verdicts, *(brackets if all_metrics else []), *comparisons.notes):
        console.print(line, highlight=False, markup=False)


def _heading(comparisons: Comparisons, of_b: str, rows: tuple[Row, ...]) -> str:
    if comparisons.kind == "tasks":
        return f"{of_b} minus A; perplexities {of_b} / A"
    return f"{of_b} minus A, {'bits per byte' if rows[0].metric == 'bits_per_byte' else 'loss in nats per token'}"


def _table(comparisons: Comparisons, of_b: str, rows: tuple[Row, ...], width: int, *, all_metrics: bool) -> Table:
    """Return a table that fits the terminal: task names may be shortened, numbers never are."""
    is_length = comparisons.kind == "length"
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


def comparison_markdown(comparisons: Comparisons) -> str:
    """Return comparisons as Markdown, with all metrics, without a trailing newline."""
    parts = [", ".join(f"{letter(number)}: {name}" for number, name in enumerate(comparisons.names))]
    for number, rows in enumerate(comparisons.rows, start=1):
        header = [each.replace("B", letter(number)) for each in COLUMNS]
        cells = [(*_cells(row), row.verdict) for row in rows]
        parts.append("\n".join(markdown_table(header, cells, n_left=2)))
    verdicts = [VERDICTS] if comparisons.is_tested else []
    return in_markdown("\n\n".join((*parts, *verdicts, *comparisons.notes)))


def comparison_tree(comparisons: Comparisons) -> dict[str, Any]:
    """Return comparisons as plain values; a row's `model` is the result that is compared with the reference, `a`."""
    rows = [
        {"model": name} | asdict(row) | {"verdict": row.verdict}
        for name, of_one in zip(comparisons.names[1:], comparisons.rows, strict=True)
        for row in of_one
    ]
    pair = {"b": comparisons.names[1]} if len(comparisons.names) == 2 else {}
    return {
        "kind": comparisons.kind,
        "a": comparisons.names[0],
        **pair,
        "names": comparisons.names,
        "rows": rows,
        "notes": comparisons.notes,
    }


def records(comparisons: Comparisons) -> Iterator[dict[str, Any]]:
    """Yield a record for each row, for a data frame."""
    for each in comparison_tree(comparisons)["rows"]:
        is_length = comparisons.kind == "length"
        place = {"task": "" if is_length else each["task"], "context_length": int(each["task"]) if is_length else None}
        yield {"kind": comparisons.kind, "reference": comparisons.names[0], **each, **place}


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

"""The table of runs in a terminal, with one line per run, and the same data as JSON."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderResult
from rich.table import Table
from rich.text import Text

from gptstar.results.run import Run, labelled
from gptstar.terminal import shortened

RECORDED = ("state", "reason", "step", "tokens", "validation_loss", "train_loss", "tokens_per_second", "hours")
COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red", "refused": "red", "damaged": "red"}
LEAST_NAME, MOST_TAGS = 12, 14
"""The least width of a name, and the largest of the tags, in characters."""


def runs_table(runs: Sequence[Run]) -> ConsoleRenderable:
    """Return a table that fits any terminal, with each run's progress, loss (nats per token), speed and time.

    If names don't fit, their common beginning is shown above the table; names that still don't fit are shortened.
    """
    return _RunsTable(runs)


class _RunsTable:
    """The table of runs, laid out for the width of the console."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._names = list(labelled(runs))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the table."""
        rows = [_cells(run) for run in self._runs]
        columns = ["state", "step", "tokens", "loss", "tok/s", "time", "ago"]
        if any(run.tags for run in self._runs):
            columns.append("tags")
            rows = [[*row, shortened(" ".join(run.tags), MOST_TAGS)] for row, run in zip(rows, self._runs, strict=True)]
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        gap = 2 if sum(widths) + 2 * len(widths) + 20 <= options.max_width else 1
        room = max(LEAST_NAME, options.max_width - sum(widths) - gap * len(widths))
        prefix, names = _fitted(self._names, room)
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
        table.add_column("run", no_wrap=True)
        for column in columns:
            left = column in ("state", "tags")
            table.add_column(column, justify="left" if left else "right", no_wrap=True)
        for name, run, row in zip(names, self._runs, rows, strict=True):
            table.add_row(Text(name), Text(row[0], style=COLOURS.get(run.state, "yellow")), *map(Text, row[1:]))
        yield Group(*([Text(f"each name begins with {prefix}", overflow="ellipsis")] if prefix else []), table)


def _cells(run: Run) -> list[str]:
    total = int(run.config.get("total_steps", 0))
    step = f"{run.step:,}" if run.step == total else f"{_short(run.step)}/{_short(total)}"
    loss, speed = _figure(run.validation_loss, ".3f"), _figure(run.tokens_per_second, "")
    return [run.state, step, _short(run.tokens), loss, speed, duration(run.hours) if run.hours else "", age(run.at)]


def _fitted(names: Sequence[str], width: int) -> tuple[str, list[str]]:
    """Return the common beginning of names that don't fit, and names of at most `width` characters each.

    The common beginning ends at a separator.
    """
    if max(map(len, names), default=0) <= width:
        return "", list(names)
    parts = [re.split(r"(?<=[-_/])", name) for name in names] if len(names) > 1 else []
    prefix = "".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False)))
    rest = [name.removeprefix(prefix) for name in names]
    cut = [shortened(name, width) for name in rest]
    if len(set(cut)) < len(set(rest)):  # the names differ in the middle: keep the end, which has the seed
        cut = [name if len(name) <= width else f"…{name[len(name) - width + 1 :]}" for name in rest]
    return prefix, cut


def as_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a record of each run for JSON: its path, state, progress, losses and speed."""
    return [
        {
            "run": str(run.path),
            **{key: getattr(run, key) for key in RECORDED},
            "total_steps": run.config.get("total_steps"),
            "tags": run.tags,
            "at": run.at.isoformat(timespec="seconds"),
        }
        for run in runs
    ]


def _figure(value: float, form: str) -> str:
    return "" if not math.isfinite(value) else f"{value:{form}}" if form else _short(round(value), "#.3g")


def _short(count: float, form: str = ".3g") -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:{form}}".removesuffix(".") + letter
    return f"{count:g}"


def duration(hours: float) -> str:
    """Format a duration in a suitable unit: `12 s`, `3.4 min`, `2.1 h`, `3.2 d`; empty if unknown."""
    if not math.isfinite(hours):
        return ""
    for size, word in ((24, "d"), (1, "h"), (1 / 60, "min")):
        if hours >= 0.995 * size * (2 if word == "d" else 1):
            count = hours / size
            return f"{count:.0f} {word}" if count >= 9.95 else f"{count:.1f} {word}"
    return f"{3600 * hours:.0f} s"


def age(at: datetime) -> str:
    """Format the time since `at`, rounded to a whole unit."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word}"
    return "now"

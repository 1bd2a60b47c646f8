"""A table of runs for a terminal, and the same as JSON."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from gptstar.results.run import Run, labelled

RECORDED = ("state", "reason", "step", "tokens", "validation_loss", "train_loss", "tokens_per_second", "hours")
COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red", "refused": "red", "damaged": "red"}


def runs_table(runs: Sequence[Run]) -> Table:
    """Make a line for each run: its progress, loss and speed."""
    table = Table("run", "state", "step", "tokens", "loss", "tokens/s", "hours", "heard of", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    table.columns[0].overflow = "fold"
    for name, run in labelled(runs).items():
        table.add_row(
            Text(name),
            Text(run.state, style=COLOURS.get(run.state, "yellow")),
            f"{run.step:,}/{run.config.get('total_steps', 0):,}",
            _short(run.tokens),
            _figure(run.validation_loss, ".3f"),
            _figure(run.tokens_per_second, ",.0f"),
            f"{run.hours:.2f}",
            _age(run.at),
        )
    return table


def as_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Make a record of each run for JSON: its path, state, progress, losses and speed."""
    return [
        {
            "run": str(run.path),
            **{key: getattr(run, key) for key in RECORDED},
            "total_steps": run.config.get("total_steps"),
            "at": run.at.isoformat(timespec="seconds"),
        }
        for run in runs
    ]


def _figure(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _short(count: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def _age(at: datetime) -> str:
    seconds = (datetime.now(UTC) - at).total_seconds()
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {word} ago"
    return "now"

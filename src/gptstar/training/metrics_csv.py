"""Reading of the metrics file that every run writes."""

import csv
from pathlib import Path

from gptstar.errors import DataError
from gptstar.files import read_text

METRICS_FILE = "metrics.csv"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's CSV, ordered by step, without empty values and without a truncated last line."""
    return [{key: float(value) for key, value in row.items()} for row in read_rows(folder / METRICS_FILE)]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a run's CSV as text, ordered by step.

    Raises:
        DataError: the file is not a run's metrics file; the message names it.
    """
    try:
        text = read_text(path, errors="replace").replace("\0", "")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    lines = [_values(line) for line in text.splitlines()]  # line by line, so that a damaged line affects no other
    if not lines or lines[0][:1] != ["step"]:
        raise DataError(f"{path} is damaged or not a run's metrics file: move it away, and the run begins a new one")
    whole = (line for line in lines[1:] if len(line) == len(lines[0]) and line[0] and all(map(_is_number, line)))
    rows = [{key: value for key, value in zip(lines[0], line, strict=True) if value} for line in whole]
    return sorted(rows, key=lambda row: float(row["step"]))  # an evaluation is written later than its step


def _values(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _is_number(value: str) -> bool:
    """Whether a cell is a number, or empty because the row has no value in that column."""
    try:
        float(value or 0)
    except ValueError:
        return False
    return True

"""The CSV that every run keeps of what it measured, read."""

import csv
from pathlib import Path

from gptstar.errors import DataError
from gptstar.files import read_text

METRICS_FILE = "metrics.csv"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's CSV by step, each with the values it has; a last line that was cut short is left out."""
    return [{key: float(value) for key, value in row.items()} for row in read_rows(folder / METRICS_FILE)]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The same as text.

    Raises:
        DataError: the file is not the record of a run; names it.
    """
    try:
        text = read_text(path, errors="replace").replace("\0", "")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    lines = [_values(line) for line in text.splitlines()]  # one by one, so that a damaged one costs no other
    if not lines or lines[0][:1] != ["step"]:
        raise DataError(f"{path} is damaged or not the record of a run: move it away, and a new one is begun")
    whole = (line for line in lines[1:] if len(line) == len(lines[0]) and line[0] and all(map(_is_number, line)))
    rows = [{key: value for key, value in zip(lines[0], line, strict=True) if value} for line in whole]
    return sorted(rows, key=lambda row: float(row["step"]))  # the evaluation of a step arrives after later ones


def _values(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _is_number(value: str) -> bool:
    """A number, or nothing, as where a row has no value in a column."""
    try:
        float(value or 0)
    except ValueError:
        return False
    return True

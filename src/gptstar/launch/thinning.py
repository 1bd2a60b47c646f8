"""What the table of a study keeps of a run's numbers: fewer digits, and fewer rows of its metrics."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from gptstar.training.metrics_csv import read_rows

DIGITS = 6
SHARE_DIGITS = 4
"""Digits of shares of answers and of attention weight: there are many, and no paired comparison needs more."""

CURVE_ROWS = 20
"""Rows of a loss curve to keep, in addition to those with a validation."""


def rounded(tree: Any, digits: int = DIGITS) -> Any:
    """Round all floating-point numbers in parsed JSON."""
    if isinstance(tree, float):
        return float(f"{tree:.{digits}g}") if math.isfinite(tree) else None
    if isinstance(tree, list):
        return [rounded(each, digits) for each in tree]
    if isinstance(tree, dict):
        return {key: rounded(value, digits) for key, value in tree.items()}
    return tree


def thinned(file: Path) -> str:
    """Return the rows of a run's metrics that reports and notebooks need: validations, the last row, some others.

    Raises:
        DataError: the file is not the `metrics.csv` of a run.
    """
    rows = read_rows(file)
    of_validation = {number for number, row in enumerate(rows) if any(key.startswith("validation") for key in row)}
    others = [number for number in range(len(rows)) if number not in of_validation]
    has_few = len(others) <= CURVE_ROWS + 1  # as a thinned file has, so that thinning again changes nothing
    every = 1 if has_few else math.ceil(len(others) / CURVE_ROWS)
    kept = sorted(of_validation | {*others[::every], *others[-1:]})
    columns = dict.fromkeys(key for number in kept for key in rows[number] if not key.startswith("gradient_norm/"))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *(key for key in columns if key != "step")], extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: _figure(value) for key, value in rows[number].items()} for number in kept)
    return text.getvalue().replace("\r\n", "\n")


def _figure(text: str) -> str:
    value = float(text)
    return f"{value:.0f}" if value.is_integer() else f"{value:.{DIGITS}g}"

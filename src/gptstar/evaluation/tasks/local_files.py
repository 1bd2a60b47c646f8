"""Reading and checking of task items from local files, which have the columns of the Hub's datasets."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.parquet
import zstandard

from gptstar.data.text.compression import decompressed
from gptstar.errors import DataError, in_one_line

Row = dict[str, Any]


class Rule(NamedTuple):
    """A requirement of the harness's code on a column, with its description."""

    accepts: Callable[[Any], bool]
    needed: str


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_four_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_text, value))


def _is_passage(value: Any) -> bool:
    return isinstance(value, str) and all(part.strip() for part in value.rpartition(" ")[::2])


VALIDATION = "(test splits come without answers: take the validation split)"
ANY_TEXT = Rule(lambda value: isinstance(value, str), "a text")
TEXT = Rule(_is_text, "a text that is not empty")

COLUMNS: dict[str, dict[str, Rule]] = {
    "lambada_openai": {"text": Rule(_is_passage, "a passage and a last word")},
    "wikitext": {"page": TEXT},
    "piqa": {
        "goal": ANY_TEXT,
        "sol1": TEXT,
        "sol2": TEXT,
        "label": Rule(lambda value: type(value) is int and value in (0, 1), f"0 or 1 {VALIDATION}"),
    },
    "hellaswag": {
        "activity_label": ANY_TEXT,
        "ctx_a": ANY_TEXT,
        "ctx_b": ANY_TEXT,
        "endings": Rule(_is_four_texts, "a list of four texts"),
        "label": Rule(lambda value: str(value) in ("0", "1", "2", "3"), f"0 to 3 {VALIDATION}"),
    },
    "winogrande": {
        "sentence": Rule(lambda value: isinstance(value, str) and "_" in value, "a text with '_' for the options"),
        "option1": TEXT,
        "option2": TEXT,
        "answer": Rule(lambda value: value in ("1", "2"), f"'1' or '2' {VALIDATION}"),
    },
}
"""The columns that the harness's code reads in each task. With other values it would fail obscurely, or give wrong
scores."""


def items(path: Path) -> list[tuple[str, Row]]:
    """Read the items of a file, each with its location (`line 7`, or `row 7` of Parquet).

    Raises:
        DataError: the file is damaged, empty, or has other lines than JSON objects; the message names file and line.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.read_table(path).to_pylist()
            rows = [(f"row {number}", row) for number, row in enumerate(table, start=1)]
        else:
            rows = list(_lines(path))
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: can't be read ({in_one_line(error)}): damaged, truncated or missing") from error
    if not rows:
        raise DataError(f"{path}: holds no items")
    return rows


def read(path: Path, task: str) -> list[tuple[str, Row]]:
    """Read the items of a file for a task, each with its location, and all with the same columns.

    In a task of the suite, a column that some items lack is null there, because the task does not read it. In other
    tasks the column is left out, so that code that needs it fails instead of reading nulls.

    Raises:
        DataError: `items` fails, or a column is missing or has a wrong value; the message names file, line and column.
    """
    rows, rules = items(path), COLUMNS.get(task, {})
    for where, row in rows:
        if lacking := [column for column in rules if column not in row]:
            raise DataError(f"{path}, {where}: no column {lacking[0]!r}, which {task} needs")
        for column, rule in rules.items():
            if not rule.accepts(row[column]):
                raise DataError(
                    f"{path}, {where}: column {column!r} is {row[column]!r:.60}, but {task} needs {rule.needed}"
                )
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    if not rules:
        columns = [column for column in columns if all(column in row for _, row in rows)]
    return [(where, {column: row.get(column) for column in columns}) for where, row in rows]


def as_harness_dataset(*, gptstar: Mapping[str, Any], **_: Any) -> dict[str, datasets.Dataset]:
    """Load the splits of a task into memory; the harness calls this as the task's `custom_dataset`.

    Args:
        gptstar: a mapping of `task`, its name; `files`, by split; and `absent`, the splits that are not needed. These
            are empty, so that code that does draw few-shot examples from them fails.

    Raises:
        DataError: `read` fails, or a column holds values of several types.
    """
    splits = {}
    for split, path in gptstar["files"].items():
        rows = [row for _, row in read(Path(path), gptstar["task"])]
        try:
            splits[split] = datasets.Dataset.from_list(rows)
        except (ValueError, TypeError) as error:  # pyarrow's errors derive from these
            raise DataError(f"{path}: a column holds values of several types ({in_one_line(error)})") from error
    any_split = next(iter(splits.values()))
    return splits | {split: any_split.select([]) for split in gptstar["absent"]}


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    with decompressed(path.open("rb"), path.name) as content:
        for number, line in enumerate(content, start=1):
            if line.isspace():
                continue
            where = f"line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, {where}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, {where}: not a JSON object, but {type(row).__name__}")
            yield where, row

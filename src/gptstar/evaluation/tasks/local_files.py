"""Items of tasks from files on this machine, in the Hub's columns: found, read and checked."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import zstandard

from gptstar.data.text.compression import decompressed
from gptstar.errors import DataError

Row = dict[str, Any]
ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")


def find(folder: Path, task: str, split: str, *, evaluated: bool) -> Path | None:
    """The file of a task's split: `TASK/SPLIT.jsonl`, or `TASK.jsonl` where it is the split that is evaluated.

    Raises:
        DataError: there are several.
    """
    stems = (f"{task}/{split}", task) if evaluated else (f"{task}/{split}",)
    found = [path for stem in stems for ending in ENDINGS if (path := folder / f"{stem}{ending}").is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} both claim to be the {split} split of {task}: keep one")
    return found[0] if found else None


def read(path: Path, task: str) -> list[tuple[str, Row]]:
    """Its items, each with where it stands (`line 7`, or `row 7` of Parquet).

    Raises:
        DataError: damaged, empty, no JSON objects, columns that are missing or change from line to line, or values
            that the task can't use; names file, line and column.
    """
    try:
        rows = list(_parquet(path) if path.suffix == ".parquet" else _lines(path))
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: can't be read ({error}): damaged, cut short or gone") from error
    if not rows:
        raise DataError(f"{path}: holds no items")
    check = CHECKS.get(task)
    for where, row in rows:
        needed = COLUMNS.get(task, rows[0][1])
        if missing := [column for column in needed if column not in row]:
            raise DataError(f"{path}, {where}: no column {missing[0]!r}, which {task} needs")
        if extra := [column for column in row if column not in rows[0][1]]:
            raise DataError(f"{path}, {where}: a column {extra[0]!r}, which {rows[0][0]} lacks")
        if problem := _wrong_type(row, COLUMNS.get(task, {})) or (check(row) if check else None):
            raise DataError(f"{path}, {where}: {problem}")
    return rows


def to_dataset(path: Path, rows: list[tuple[str, Row]]) -> datasets.Dataset:
    """Items in memory; nothing is written to any cache.

    Raises:
        DataError: a column holds values of several types.
    """
    try:
        return datasets.Dataset.from_list([row for _, row in rows])
    except (ValueError, TypeError) as error:  # pyarrow's are of these
        raise DataError(f"{path}: a column holds values of several types ({str(error).splitlines()[0]})") from error


def as_harness_dataset(*, gptstar: Mapping[str, Any], **_: Any) -> dict[str, datasets.Dataset]:
    """What the harness calls as a task's `custom_dataset`.

    Args:
        gptstar: `task`; `files`, by split; and `absent`, splits of the task that nothing will be taken from: they are
            empty, so that whoever draws few-shot examples from them after all is stopped.

    Returns:
        By split.
    """
    found = {
        split: to_dataset(Path(path), read(Path(path), gptstar["task"])) for split, path in gptstar["files"].items()
    }
    any_split = next(iter(found.values()))
    return found | {split: any_split.select([]) for split in gptstar["absent"]}


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    with decompressed(path.open("rb"), path.name) as content:
        for number, line in enumerate(content, start=1):
            where = f"line {number}"
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, {where}: not UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, {where}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, {where}: no JSON object, but {type(row).__name__}")
            yield where, row


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: no Parquet, or damaged ({str(error).splitlines()[0]})") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


COLUMNS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "lambada_openai": {"text": str},
    "wikitext": {"page": str},
    "piqa": {"goal": str, "sol1": str, "sol2": str, "label": int},
    "hellaswag": {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": (str, int)},
    "winogrande": {"sentence": str, "option1": str, "option2": str, "answer": str},
}
"""What the harness's code for a task reads, and of which type. Other tasks are asked for their columns as they run."""


def _wrong_type(row: Row, columns: Mapping[str, type | tuple[type, ...]]) -> str | None:
    for column, kind in columns.items():
        value = row[column]
        if not isinstance(value, kind) or isinstance(value, bool):
            names = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            return f"column {column!r} is {value!r:.60}, where {names} is needed"
    return None


def _lambada(row: Row) -> str | None:
    context, _, word = row["text"].rpartition(" ")
    return (
        None
        if context.strip() and word.strip()
        else f"column 'text' is no passage and a last word: {row['text']!r:.60}"
    )


def _wikitext(row: Row) -> str | None:
    return None if row["page"].strip() else "column 'page' is empty"


def _piqa(row: Row) -> str | None:
    if row["label"] not in (0, 1):
        return f"column 'label' is {row['label']}, where 0 or 1 is needed{_UNLABELLED}"
    return _empty(row, "sol1", "sol2")


def _hellaswag(row: Row) -> str | None:
    endings = row["endings"]
    if len(endings) != 4 or not all(isinstance(ending, str) and ending.strip() for ending in endings):
        return f"column 'endings' is {endings!r:.60}, where four texts are needed"
    if str(row["label"]) not in ("0", "1", "2", "3"):
        return f"column 'label' is {row['label']!r}, where 0 to 3 is needed{_UNLABELLED}"
    return None


def _winogrande(row: Row) -> str | None:
    if "_" not in row["sentence"]:
        return f"column 'sentence' has no '_' where the options go: {row['sentence']!r:.60}"
    if row["answer"] not in ("1", "2"):
        return f"column 'answer' is {row['answer']!r}, where '1' or '2' is needed{_UNLABELLED}"
    return _empty(row, "option1", "option2")


def _empty(row: Row, *columns: str) -> str | None:
    return next((f"column {column!r} is empty" for column in columns if not row[column].strip()), None)


_UNLABELLED = " (test splits come without answers: take the validation split)"

CHECKS: dict[str, Callable[[Row], str | None]] = {
    "lambada_openai": _lambada,
    "wikitext": _wikitext,
    "piqa": _piqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
}
"""What would make the harness fail deep down, or score nonsense."""

"""Benchmark items as the texts to search for in a corpus."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptstar.errors import DataError

KNOWN = (
    "text (LAMBADA), goal sol1 sol2 (PIQA), sentence option1 option2 (Winogrande), ctx endings (HellaSwag), page "
    "(WikiText)"
)
HELLASWAG_LABEL = re.compile(r"\[(header|title|step|substeps)\]")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's items, each as the texts to search for: the question with each of its answers."""

    name: str
    items: tuple[tuple[str, ...], ...]

    @classmethod
    def from_file(cls, path: Path) -> "Benchmark":
        """Read a `.jsonl` file named after the benchmark. The columns, those of the Hub, identify the kind of items.

        Raises:
            DataError: the file can't be read, or a line is not an item; names the line and the known columns.
        """
        items = []
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        items.append(tuple(_texts(json.loads(line))))
                    except (ValueError, LookupError, TypeError, RecursionError) as error:
                        where = f"{path}, line {number}"
                        raise DataError(
                            f"{where} is not a benchmark item: give one of these sets of columns: {KNOWN}"
                        ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"can't read the benchmark {path}: {getattr(error, 'strerror', None) or error}") from error
        if not items:
            raise DataError(f"{path} is empty: give a .jsonl with one item per line")
        return cls(path.stem, tuple(items))


def _texts(row: dict[str, Any]) -> Iterator[str]:
    if "goal" in row:
        yield from (f"{_text(row['goal'])} {_text(row[solution])}" for solution in ("sol1", "sol2"))
    elif "sentence" in row:
        yield from (_text(row["sentence"]).replace("_", _text(row[option])) for option in ("option1", "option2"))
    elif "endings" in row:
        yield from (HELLASWAG_LABEL.sub(" ", f"{_text(row['ctx'])} {_text(ending)}") for ending in row["endings"])
    elif "page" in row:
        yield from _text(row["page"]).split("<unk>")  # marks omitted rare words, so no run of words may cross it
    else:
        yield _text(row["text"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no text: {value!r}")
    return value

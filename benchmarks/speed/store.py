"""`results.json`: every round of every comparison, by device; a run replaces the comparisons that it measured."""

import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gptstar.errors import DataError
from gptstar.files import write_text
from speed.engine import Outcome

FILE = "results.json"
Results = dict[str, dict[str, Outcome]]
"""By device, then by the comparison's name."""


def load(path: Path) -> Results:
    """What was measured before; nothing where there is no file.

    Raises:
        DataError: the file is no record of benchmarks, or can't be read.
    """
    try:
        return parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error


def parse(text: str | bytes, source: str) -> Results:
    """`results.json` as text.

    Raises:
        DataError: it is no record of benchmarks.
    """
    try:
        return TypeAdapter(Results).validate_json(text)
    except ValidationError as error:
        raise DataError(f"{source} is no record of `make bench`: move it away, and measure anew") from error


def committed(path: Path) -> Results:
    """The record as it was last committed.

    Raises:
        DataError: there is none.
    """
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{path.name}"], cwd=path.parent, capture_output=True, text=True, check=False
    )
    if shown.returncode:
        raise DataError(f"{path} was never committed: run `make bench` and commit it, or give --against FILE")
    return parse(shown.stdout, f"the committed {path.name}")


def save(results: Results, path: Path) -> None:
    """Write it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {device: {name: asdict(each) for name, each in of.items()} for device, of in results.items()}
    text = re.sub(
        r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(tree, indent=1)
    )  # a list, a line
    write_text(path, text + "\n")

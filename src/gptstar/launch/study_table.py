"""A table of finished runs: what reports and notebooks read of them, without checkpoints, to be kept in a repository.

It is a text file of JSON, a line for each run: its name, when it ended, its loss, and its small files, which are packed
(JSON, zlib, base85), as they would be several times as large. Numbers keep six digits, shares of answers and of
attention weight four.
"""

import base64
import csv
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from gptstar.errors import ConfigError, in_one_line
from gptstar.files import partial_path, read_json, read_text, remove, write_text
from gptstar.results.loaded import REPORT
from gptstar.results.run import DESCRIPTION
from gptstar.training.metrics_csv import METRICS_FILE, read_rows
from gptstar.training.restored import mark_restored, replace_path, without_own_paths
from gptstar.training.status import FILE_NAME as STATUS_FILE
from gptstar.training.status import LOCK_NAME, Status, in_use

HEADER = {"format": "gptstar study", "format_version": 1}
CONFIG = "config.yaml"
LENGTH = "length/results.json"
RESULTS = (LENGTH, "recall/results.json", "heads/results.json")
EXACT = (DESCRIPTION, STATUS_FILE)
TREES = (*EXACT, REPORT, *RESULTS)
TEXTS = (CONFIG, METRICS_FILE)

RUN = "{run}"
"""The placeholder in a table for the path of the run directory."""

DIGITS = 6
SHARE_DIGITS = 4
"""Digits of shares of answers and of attention weight: there are many, and no paired comparison needs more."""

CURVE_ROWS = 20
"""Rows of a loss curve to keep, in addition to those with a validation."""


@dataclass(frozen=True)
class StudyTable:
    """The table of a study: a file with the results of finished runs.

    Attributes:
        path: the file; `save` creates it.
    """

    path: Path

    def read(self) -> dict[str, dict[str, Any]]:
        """Read the files of each run, by the run's name, which is its path below the study's folder.

        Raises:
            ConfigError: the file is not such a table, or is damaged; the message names the line.
        """
        return {name: files for name, (_, files) in self._lines().items()}

    def save(self, study: Path, folders: Sequence[Path]) -> list[str]:
        """Add those of the runs that are finished; they replace earlier versions of themselves.

        Args:
            study: the folder of the study; a run's name is its path below it.
            folders: the run directories.

        Returns:
            The names of the runs that are new or have changed.

        Raises:
            ConfigError: the file is damaged, or not a table.
            OSError: the table can't be written; the earlier one is kept.
        """
        changed = []
        with self._locked():
            lines = self._lines()
            for folder in folders:
                if (status := Status.read(folder)) is None or status.state != "finished":
                    continue
                name, files = folder.resolve().relative_to(study.resolve()).as_posix(), dict(_files_of(folder))
                if name not in lines or lines[name][1] != files:
                    lines[name] = _line_of(name, files), files
                    changed.append(name)
            if changed:
                text = "".join(f"{line}\n" for line in (json.dumps(HEADER), *(line for line, _ in lines.values())))
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self.path, text)
        return changed

    def _lines(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Read each run's line and its files, by the run's name."""
        try:
            lines = read_text(self.path).splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path} can't be read as a table of a study: {in_one_line(error)}; give another file"
            ) from error
        runs: dict[str, tuple[str, dict[str, Any]]] = {}
        for number, line in enumerate(lines, start=1):
            try:
                tree = json.loads(line)
                if number == 1 and tree != HEADER:
                    raise ValueError(f"begins with {line:.40} in place of {json.dumps(HEADER)}")
                if number > 1:
                    name = _name(tree["run"])
                    runs[name] = line, _unpacked(tree["files"])
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error) as error:
                raise ConfigError(
                    f"{self.path}, line {number}: {in_one_line(error)}; it is damaged or not a table of a study: give "
                    "another, or take it from its repository again"
                ) from error
        return runs

    def restore(self, study: Path) -> list[str]:
        """Write the runs back into a folder, except those that have begun there; return the names of those written.

        Raises:
            ConfigError: the file is damaged, or not a table.
            OSError: a run can't be written.
        """
        restored = []
        for name, files in self.read().items():
            folder = study / name
            if in_use(folder) or (folder.is_dir() and {each.name for each in folder.iterdir()} - {LOCK_NAME}):
                continue
            grown = partial_path(folder)
            remove(grown)
            for file, content in sorted(files.items(), key=lambda each: each[0] == DESCRIPTION):  # by it a run is known
                (grown / file).parent.mkdir(parents=True, exist_ok=True)
                text = content if file in TEXTS else f"{json.dumps(content, indent=2)}\n"
                own_path = str(folder.resolve())
                text = text.replace(RUN, own_path if file in TEXTS else json.dumps(own_path)[1:-1])
                (grown / file).write_text(text, encoding="utf-8")
                _set_time(grown / file, files)
            mark_restored(grown, self.path)
            remove(folder)
            grown.replace(folder)
            restored.append(name)
        return restored

    def _locked(self) -> FileLock:
        """Return a lock against other writers of the same table; its file lies outside the table's repository."""
        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        folder = user_cache_path("gptstar") / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")


def _name(name: str) -> str:
    """Check that a run's name is a path inside the study's folder, and return it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"the run {name!r} does not lie in the study's folder")
    return name


def _line_of(name: str, files: Mapping[str, Any]) -> str:
    """Return the line of a run: its name, the time it ended and its loss, for readers, and its compressed files."""
    text = json.dumps(files, separators=(",", ":"), ensure_ascii=False)
    packed = base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    rows = [row for row in csv.DictReader(files.get(METRICS_FILE, "").splitlines()) if row.get("validation/loss")]
    loss = float(rows[-1]["validation/loss"]) if rows else None
    return json.dumps({"run": name, "at": files[STATUS_FILE].get("at"), "validation_loss": loss, "files": packed})


def _unpacked(packed: str) -> dict[str, Any]:
    """Decompress the files of a run, and check that they are those that a table holds."""
    files = json.loads(zlib.decompress(base64.b85decode(packed)))
    if missing := {CONFIG, *EXACT} - set(files):
        raise ValueError(f"a run lacks {min(missing)}")
    if unknown := set(files) - {*TREES, *TEXTS}:
        raise ValueError(f"{min(unknown)} is not a file of a run that tables hold")
    if any(not isinstance(files[file], str) for file in TEXTS if file in files):
        raise ValueError("a text is something else")
    return dict(files)


def _files_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the files of a run directory that a table holds: each file's name, and its text or parsed JSON."""
    yield CONFIG, _harmless(read_text(folder / CONFIG), folder)
    for file in TREES:
        if (folder / file).exists():
            tree = json.loads(_harmless(json.dumps(read_json(folder / file), ensure_ascii=False), folder))
            digits = DIGITS if file in (REPORT, LENGTH) else SHARE_DIGITS
            yield file, tree if file in EXACT else rounded(tree, digits)
    if (folder / METRICS_FILE).exists():
        yield METRICS_FILE, thinned(folder / METRICS_FILE)


def _harmless(text: str, folder: Path) -> str:
    """Replace the paths of the run directory and of this machine in a text by placeholders."""
    return without_own_paths(replace_path(text, folder.resolve(), RUN))


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
    every = max(1, math.ceil(len(others) / CURVE_ROWS))
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


def _set_time(path: Path, files: Mapping[str, Any]) -> None:
    """Set a file's modification time to the end of the run, so that comparisons of dates stay right."""
    try:
        at = datetime.fromisoformat(files[STATUS_FILE]["at"]).timestamp()
    except (ValueError, LookupError, TypeError):
        return
    os.utime(path, (at, at))

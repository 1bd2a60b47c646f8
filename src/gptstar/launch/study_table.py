"""A table of finished runs: what reports and notebooks read of them, without checkpoints, to be kept in a repository.

It is a text file of JSON, a line for each run: its name, when it ended, its loss, and its small files, which are packed
(JSON, zlib, base85), as they would be several times as large. Numbers keep six digits, shares of answers and of
attention weight four.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from gptstar.checkpoint.kept import RESTORED
from gptstar.errors import ConfigError, in_one_line
from gptstar.files import partial_path, read_text, remove, write_text
from gptstar.launch.study_line import CONFIG, RUN, TEXTS, TIMING, Line, line_of, unpacked, unshared
from gptstar.results.run import DESCRIPTION
from gptstar.training.restored import mark_restored
from gptstar.training.status import FILE_NAME as STATUS_FILE
from gptstar.training.status import LOCK_NAME, Status, in_use

HEADER = {"format": "gptstar study", "format_version": 1}


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
        return {name: line.files for name, line in self._lines().items()}

    def save(self, study: Path, folders: Sequence[Path]) -> list[str]:
        """Add those of the runs that are finished; they replace earlier versions of themselves.

        A run that was restored from a table replaces nothing.

        Args:
            study: the folder of the study; a run's name is its path below it.
            folders: the run directories.

        Returns:
            The names of the runs that are new or have changed.

        Raises:
            ConfigError: the file is damaged, or not a table, or has a run of this name with other settings or another
                text; the table stays as it is.
            OSError: the table can't be written; the earlier one is kept.
        """
        changed = []
        with self._locked():
            lines = self._lines()
            for folder in folders:
                if (status := Status.read(folder)) is None or status.state != "finished":
                    continue
                name, line = _name_of(folder, study), line_of(folder, _name_of(folder, study))
                if name in lines:
                    self._check_same(name, lines[name], line.files[CONFIG], line.fingerprint)
                    if (folder / RESTORED).exists() or (lines[name].files, lines[name].timing) == (
                        line.files,
                        line.timing,
                    ):
                        continue
                lines[name] = line
                changed.append(name)
            if changed:
                text = "".join(f"{line}\n" for line in (json.dumps(HEADER), *(each.text for each in lines.values())))
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self.path, text)
        return changed

    def check(self, folder: Path, study: Path, config_yaml: str, fingerprint: str, swept: Collection[str]) -> None:
        """Check that a run which is to be done fits the table, so that its results can be added.

        Args:
            folder: the run directory.
            study: the folder of the study.
            config_yaml: the configuration of the run, as composed.
            fingerprint: the fingerprint of its text.
            swept: the keys that the sweep varies.

        Raises:
            ConfigError: the table has a run of this name with other settings, or it is new and all runs of the table
                have another number of steps, of tokens in a step, or another text; or the file is damaged.
        """
        name, lines = _name_of(folder, study), self._lines()
        if name in lines:
            self._check_same(name, lines[name], config_yaml, fingerprint)
        elif lines:
            said = ", ".join(unshared(list(lines.values()), config_yaml, fingerprint, swept))
            if said:
                raise ConfigError(
                    f"{name} would be the first run in {self.path} with {said}: give the settings of its other runs, "
                    "or another output and table"
                )

    def _check_same(self, name: str, line: Line, config_yaml: str, fingerprint: str) -> None:
        """Refuse a run whose name the table has for a run of other settings."""
        try:
            said = line.differences(config_yaml, fingerprint)
        except ValueError as error:
            raise ConfigError(f"{self.path}: {name} is damaged ({in_one_line(error)}): remove its line") from error
        if said:
            raise ConfigError(
                f"{name} in {self.path} is a run of other settings: {said}; give those settings, or another output "
                "and table"
            )

    def _lines(self) -> dict[str, Line]:
        """Read the runs by name."""
        try:
            lines = read_text(self.path).splitlines()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path} can't be read as a table of a study: {in_one_line(error)}; give another file"
            ) from error
        runs: dict[str, Line] = {}
        for number, line in enumerate(lines, start=1):
            try:
                tree = json.loads(line)
                if number == 1 and tree != HEADER:
                    raise ValueError(f"begins with {line:.40} in place of {json.dumps(HEADER)}")
                if number > 1:
                    name = _name(tree["run"])
                    timing = {key: float(tree[key]) for key in TIMING if tree.get(key) is not None}
                    runs[name] = Line(line, unpacked(tree["files"]), timing)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error) as error:
                raise ConfigError(
                    f"{self.path}, line {number}: {in_one_line(error)}; it is damaged or not a table of a study: give "
                    "another, or take it from its repository again"
                ) from error
        return runs

    def restore(self, study: Path) -> list[str]:
        """Write the runs back into a folder, except those that have begun there; return the names of those written.

        The caller holds the folder's lock (`lock_output`), because two may not write one run at once.

        Raises:
            ConfigError: the file is damaged, or not a table.
            OSError: a run can't be written.
        """
        restored = []
        for name, line in self._lines().items():
            folder, files = study / name, line.files
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
            mark_restored(grown, self.path, line.timing)
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


def _name_of(folder: Path, study: Path) -> str:
    return folder.resolve().relative_to(study.resolve()).as_posix()


def _set_time(path: Path, files: Mapping[str, Any]) -> None:
    """Set a file's modification time to the end of the run, so that comparisons of dates stay right."""
    try:
        at = datetime.fromisoformat(files[STATUS_FILE]["at"]).timestamp()
    except (ValueError, LookupError, TypeError):
        return
    os.utime(path, (at, at))

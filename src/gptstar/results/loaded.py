"""Runs and evaluations below paths; each file is read once, however many frames are made from it."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from gptstar.errors import ConfigError
from gptstar.evaluation.results import FILE_NAME, TaskResults, parse_tasks, problem
from gptstar.files import read_json
from gptstar.keys import flatten
from gptstar.results.run import DESCRIPTION, Run, is_hidden, labelled, no_run_in, runs_below
from gptstar.results.sources import MissingResultsWarning, Source, expand
from gptstar.training.status import read_config

T = TypeVar("T")

REPORT = "report.json"
"""The report that a run with `report: true` writes, which includes the loss at several context lengths."""

DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""The errors that reading a damaged evaluation may raise."""


class DamagedWarning(UserWarning):
    """The warning that a run or an evaluation can't be read, and is left out."""


OTHER_KINDS = ("length", "heads", "recall")
"""The kinds of evaluations other than scores on tasks."""


class Loaded:
    """The runs and evaluations below some paths, read at their first use.

    Attributes:
        paths: the folders and files that the sources name.
        damaged: a message for each run or file read so far that is damaged, by its path.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        """Find the paths.

        Raises:
            ConfigError: a source does not exist.
        """
        self.paths = expand(sources)
        self.damaged: dict[Path, str] = {}

    @cached_property
    def runs(self) -> dict[str, Run]:
        """The readable runs by name."""
        named = labelled(runs_below(self.paths))
        readable = {name: run for name, run in named.items() if run.state != "damaged"}
        for run in (run for name, run in named.items() if name not in readable):
            self.damaged[run.path] = f"{run.path} is damaged: {run.reason}"
        return readable

    def check_has_runs(self) -> None:
        """Raise a ConfigError if there is no readable run."""
        if not self.runs:
            raise ConfigError(next(iter(self.damaged.values()), no_run_in(self.paths)))

    @cached_property
    def evaluations(self) -> dict[Path, dict[str, Any]]:
        """The content of each evaluation file, the oldest first."""
        trees = {file: self.of_file(file, read_evaluation) for file in evaluation_files(self.paths)}
        return {file: tree for file, tree in trees.items() if tree is not None}

    def of_file(self, file: Path, read: Callable[[Path], T]) -> T | None:
        """Read from a file; if it is damaged, note that in `damaged` and return None."""
        try:
            return read(file)
        except DAMAGE as error:
            self.damaged[file] = f"{file} is damaged: {problem(error)}"
            return None

    def task_results(self) -> dict[Path, TaskResults]:
        """Return the readable evaluations on tasks, the oldest first."""
        trees = {file: tree for file, tree in self.evaluations.items() if tree.get("kind") not in OTHER_KINDS}
        parsed = {file: self.of_file(file, lambda file: parse_tasks(trees[file])) for file in trees}
        return {file: results for file, results in parsed.items() if results is not None}

    def warn(self, missing: str = "", *, depth: int = 2) -> None:
        """Warn about damaged files and missing results; `depth` is the number of stack frames to the user's code."""
        for line in self.damaged.values():
            warnings.warn(line, DamagedWarning, stacklevel=depth + 1)
        if missing:
            warnings.warn(missing, MissingResultsWarning, stacklevel=depth + 1)


def evaluation_files(paths: Sequence[Path]) -> list[Path]:
    """Return the evaluation files among and below some paths, the oldest first."""
    files = {path.resolve() for path in paths if not path.is_dir()}
    for path in (path for path in paths if path.is_dir()):
        found = [file for name in (FILE_NAME, REPORT) for file in path.rglob(name) if not is_hidden(file, path)]
        files |= {file.resolve() for file in found if file.name != REPORT or (file.parent / DESCRIPTION).exists()}
    return sorted(files, key=lambda file: (file.stat().st_mtime if file.exists() else 0, file))


def read_evaluation(file: Path) -> dict[str, Any] | None:
    """Read a `results.json`, or the length readings of a run's `report.json` in the same form; None if it has none.

    Raises:
        OSError, ValueError: the file can't be read.
        LookupError, TypeError, AttributeError: the file is damaged.
    """
    tree = read_json(file)
    if not isinstance(tree, dict):
        return None
    if file.name != REPORT:
        return tree
    plain = {"checkpoint": {"name": f"{file.parent.name}/best"}, "scaling": "none"}
    if isinstance(curve := tree.get("curve"), dict):
        head = {key: tree.get(key) or curve[key] for key in ("protocol", "text")}
        return {"kind": "length", **head, "curves": [plain | curve | {"checkpoint": plain["checkpoint"]}]}
    if not tree.get("lengths"):
        return None
    # Older reports don't record the protocol, which was this one.
    protocol = {"protocol": "disjoint", "max_tokens": flatten(read_config(file.parent)).get("data.validation_tokens")}
    reference = min(point["context_length"] for point in tree["lengths"])
    curve = plain | {"trained_at": None, "reference": reference, "lengths": tree["lengths"]}
    text = {"fingerprint": str(read_json(file.parent / DESCRIPTION).get("data"))}
    return {"kind": "length", "protocol": protocol, "text": text, "curves": [curve]}


def home_of(file: Path) -> Path:
    """Return the run directory that contains a file of results, or else the file's folder."""
    return next((each for each in file.parents if (each / DESCRIPTION).exists()), file.parent)

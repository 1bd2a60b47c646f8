"""What paths hold, runs and evaluations: each file is read once, however many frames are made of it."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from gptstar.errors import ConfigError
from gptstar.evaluation.results import FILE_NAME, TaskResults, parse_tasks, problem
from gptstar.files import read_json
from gptstar.keys import flatten
from gptstar.results.run import DESCRIPTION, Run, labelled, no_run_in, runs_below
from gptstar.results.sources import MissingResultsWarning, Source, expand
from gptstar.training.status import read_config

T = TypeVar("T")

REPORT = "report.json"
"""What a run with `report: true` writes about itself, among others the loss at several context lengths."""

DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""Errors that reading a damaged evaluation raises."""


class DamagedWarning(UserWarning):
    """A run or an evaluation that can't be read, and is left out."""


OTHER_KINDS = ("length", "heads", "recall")
"""Kinds of evaluations that are not scores on tasks."""


class Loaded:
    """Runs and evaluations below some paths, read when they are first asked for.

    Attributes:
        paths: the folders and files that the sources name.
        damaged: what can't be read of what was asked for so far: a line for each run or file.
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
        """The runs that can be read, by their names."""
        named = labelled(runs_below(self.paths))
        readable = {name: run for name, run in named.items() if run.state != "damaged"}
        for run in (run for name, run in named.items() if name not in readable):
            self.damaged[run.path] = f"{run.path} is damaged: {run.reason}"
        return readable

    def check_has_runs(self) -> None:
        """Raise a ConfigError if there is no run that can be read."""
        if not self.runs:
            raise ConfigError(next(iter(self.damaged.values()), no_run_in(self.paths)))

    @cached_property
    def evaluations(self) -> dict[Path, dict[str, Any]]:
        """Each file of an evaluation with what it says, the oldest first."""
        trees = {file: self.of_file(file, read_evaluation) for file in evaluation_files(self.paths)}
        return {file: tree for file, tree in trees.items() if tree is not None}

    def of_file(self, file: Path, read: Callable[[Path], T]) -> T | None:
        """Read something of a file; None if it is damaged, which is noted."""
        try:
            return read(file)
        except DAMAGE as error:
            self.damaged[file] = f"{file} is damaged: {problem(error)}"
            return None

    def task_results(self) -> dict[Path, TaskResults]:
        """The evaluations on tasks that can be read, the oldest first."""
        trees = {file: tree for file, tree in self.evaluations.items() if tree.get("kind") not in OTHER_KINDS}
        found = {file: self.of_file(file, lambda file: parse_tasks(trees[file])) for file in trees}
        return {file: results for file, results in found.items() if results is not None}

    def warn(self, missing: str = "", *, depth: int = 2) -> None:
        """Warn whoever called the caller, or so many calls up, of what is damaged, and of what is missing."""
        for line in self.damaged.values():
            warnings.warn(line, DamagedWarning, stacklevel=depth + 1)
        if missing:
            warnings.warn(missing, MissingResultsWarning, stacklevel=depth + 1)


def evaluation_files(paths: Sequence[Path]) -> list[Path]:
    """List the files of evaluations among some paths and below them, the oldest first."""
    files = {path.resolve() for path in paths if not path.is_dir()}
    for path in (path for path in paths if path.is_dir()):
        files |= {file.resolve() for file in path.rglob(FILE_NAME) if not file.parent.name.endswith(".partial")}
        files |= {file.resolve() for file in path.rglob(REPORT) if (file.parent / DESCRIPTION).exists()}
    return sorted(files, key=lambda file: (file.stat().st_mtime if file.exists() else 0, file))


def read_evaluation(file: Path) -> dict[str, Any] | None:
    """Read a `results.json`, or the readings of a run's `report.json` in the form of one; None if it has none.

    Raises:
        OSError, ValueError: the file can't be read.
        LookupError, TypeError, AttributeError: it is damaged.
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
    # Until the protocol was written too, it was this one.
    protocol = {"protocol": "disjoint", "max_tokens": flatten(read_config(file.parent)).get("data.validation_tokens")}
    reference = min(point["context_length"] for point in tree["lengths"])
    curve = plain | {"trained_at": None, "reference": reference, "lengths": tree["lengths"]}
    text = {"fingerprint": str(read_json(file.parent / DESCRIPTION).get("data"))}
    return {"kind": "length", "protocol": protocol, "text": text, "curves": [curve]}


def home_of(file: Path) -> Path:
    """Find the run directory around a file of results; the file's folder, where it is in none."""
    return next((each for each in file.parents if (each / DESCRIPTION).exists()), file.parent)

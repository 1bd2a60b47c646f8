"""Results set against the first of them, whatever names them: runs, folders of results, files, patterns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gptstar.errors import ConfigError
from gptstar.evaluation.compare import Comparisons, compare_tasks
from gptstar.evaluation.comparison_tables import records
from gptstar.evaluation.length.compare import Reading, compare_curves
from gptstar.evaluation.results import FILE_NAME, TaskResults, problem, read_tasks
from gptstar.results.evaluations import evaluation_files, home_of, read_evaluation, study_of
from gptstar.results.sources import Source, expand, in_order

COMPARE_FIGURES = (
    *("kind", "reference", "model", "task", "context_length", "metric", "a", "b", "difference", "ratio", "low", "high"),
    *("p", "p_holm", "verdict", "items", "primary", "test"),
)

HOW = "evaluate.py checkpoint=RUN output=results/NAME writes scores on tasks, with evaluation=length losses at lengths"


@dataclass(frozen=True)
class Entrant:
    """What was found of one run, or in one folder of results: the newest of each kind.

    Attributes:
        readings: of each model in a study of length.
    """

    place: Path
    tasks: TaskResults | None
    readings: tuple[Reading, ...]

    @property
    def kinds(self) -> str:
        """What it holds, in words."""
        tasks = ("scores on tasks",) if self.tasks else ()
        return " and ".join((*tasks, *(("losses at context lengths",) if self.readings else ())))


def compare(*sources: Source) -> pd.DataFrame:
    """Set results against the first of them, as `gptstar compare` does.

    Args:
        sources: run directories, folders of such, folders of results, `results.json` files, patterns and lists: at
            least two results of one kind in all. The first is the reference.

    Returns:
        The columns of `COMPARE_FIGURES`, a line for each metric of a task, or each `context_length` (tokens), of each
        `model`. `a` is the reference's figure, `b` the model's, and `difference` is b - a, in the metric's unit: a
        share of items for `acc`, nats per token for `loss`. `low` and `high` are its 95 % interval over items, or over
        documents; those of `ratio`, which is b / a, where there is one, of perplexities. `p` is two-sided, and `p_holm`
        adjusted for all lines that are `primary`. `attrs["notes"]` holds what a reader has to know.

    Raises:
        ConfigError: a source does not exist; or less than two results can be compared.
    """
    found = compared(*sources)
    frame = pd.DataFrame([line for each in found for line in records(each)], columns=list(COMPARE_FIGURES))
    frame.attrs["notes"] = [note for each in found for note in each.notes]
    return frame


def compared(*sources: Source) -> list[Comparisons]:
    """Compare results on tasks, and losses at context lengths, with the first of each.

    Raises:
        ConfigError: as `compare`.
    """
    entrants = [entrant for path in expand(sources) for entrant in _entrants(path)]
    readings = [reading for entrant in entrants for reading in entrant.readings]
    tasks = [entrant.tasks for entrant in entrants if entrant.tasks is not None]
    if len(tasks) < 2 and len(readings) < 2:
        held = "; ".join(f"{entrant.place} has {entrant.kinds}" for entrant in entrants)
        raise ConfigError(f"a comparison takes two results of one kind: {held}. {HOW}")
    found = []
    if len(tasks) > 1:
        found.append(compare_tasks(tasks))
    if len(readings) > 1:
        found.append(compare_curves(readings))
    return found


def _entrants(path: Path) -> Iterator[Entrant]:
    """What a path names: each run below it that was evaluated, and each folder of results that is of none.

    Raises:
        ConfigError: there is none, or a file is damaged.
    """
    own = path / FILE_NAME
    files = [own] if own.is_file() else evaluation_files([path])
    by_home: dict[Path, list[Path]] = {}
    for file in files:
        by_home.setdefault(home_of(file.absolute()), []).append(file)
    entrants = [_entrant(home, by_home[home]) for home in sorted(by_home, key=in_order)]
    entrants = [each for each in entrants if each.kinds]
    if not entrants:
        raise ConfigError(f"{path} holds no results to compare: {HOW}")
    yield from entrants


def _entrant(home: Path, files: Sequence[Path]) -> Entrant:
    """The newest results of each kind; `files` are in the order of their dates."""
    tasks: TaskResults | None = None
    readings: tuple[Reading, ...] = ()
    for file in files:
        try:
            tree = read_evaluation(file)
            if tree is not None and tree.get("kind") == "length":
                readings = tuple(_readings(home, tree))
            elif tree is not None:
                tasks = read_tasks(file)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} is damaged: {problem(error)}") from error
    return Entrant(home, tasks, readings)


def _readings(home: Path, tree: dict[str, Any]) -> Iterator[Reading]:
    for curve in tree["curves"]:
        checkpoint = {"name": home.name} | curve["checkpoint"]
        if curve["rotary_scaling"] != "none":
            checkpoint["name"] = f"{checkpoint['name']}, {curve['rotary_scaling']}"
        yield Reading.parse(study_of(tree, sizes=()), curve, checkpoint)

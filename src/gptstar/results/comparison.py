"""Comparisons of results with the first of them, named by runs, folders of results, files or patterns."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gptstar.errors import ConfigError
from gptstar.evaluation.compare import Comparisons, by_checkpoint, compare_tasks, names_of
from gptstar.evaluation.comparison_tables import records
from gptstar.evaluation.length.compare import Reading, compare_curves
from gptstar.evaluation.results import FILE_NAME, TaskResults
from gptstar.results.evaluations import context_of, scaling_of, study_of
from gptstar.results.loaded import Loaded, home_of
from gptstar.results.sources import Source, natural_key

COMPARE_FIGURES = (
    *("kind", "reference", "model", "task", "context_length", "metric", "a", "b", "difference", "ratio", "low", "high"),
    *("p", "p_holm", "verdict", "items", "primary", "test"),
)

HOW = "evaluate.py checkpoint=RUN output=results/NAME writes scores on tasks, with evaluation=length losses at lengths"


class Entrant(NamedTuple):
    """The results of one run or of one folder, for each checkpoint, the newest first."""

    place: Path
    tasks: list[TaskResults]
    readings: list[Reading]


def compare(*sources: Source) -> pd.DataFrame:
    """Compare results with the first of them, as `gptstar compare` does.

    Args:
        sources: run directories, folders with some, folders of results, `results.json` files, patterns and lists. They
            must hold at least two results of one kind; the first is the reference.

    Returns:
        The columns of `COMPARE_FIGURES`, with a row for each `model` and metric of a task, or each `context_length`
        (tokens). `a` is the reference's value, `b` the model's, and `difference` is b - a, in the metric's unit: a
        share of items for `acc`, nats per token for `loss`. `ratio` is b / a, for perplexities only. `low` and `high`
        are the 95 % interval of the ratio if there is one, otherwise of the difference, over items or documents. `p` is
        two-sided, and `p_holm` adjusted for all rows that are `primary`. `attrs["notes"]` holds caveats.

    Raises:
        ConfigError: a source does not exist, or fewer than two results can be compared.
    """
    loaded = Loaded(sources)
    comparisons = compared(loaded)
    loaded.warn()
    frame = pd.DataFrame([line for each in comparisons for line in records(each)], columns=list(COMPARE_FIGURES))
    frame.attrs["notes"] = [note for each in comparisons for note in each.notes]
    return frame


def compared(loaded: Loaded) -> list[Comparisons]:
    """Compare results on tasks, and losses at context lengths, with the first of each.

    Raises:
        ConfigError: for the same reasons as in `compare`.
    """
    entrants = list(_entrants(loaded))
    readings, left_out = _of_one_study([each.readings for each in entrants if each.readings])
    tasks = [results for entrant in entrants for results in entrant.tasks]
    comparisons: list[Comparisons] = []
    refused: list[ConfigError] = []
    both: list[Callable[[], Comparisons]] = [partial(_on_shared_tasks, tasks)] if len(tasks) > 1 else []
    both += [partial(compare_curves, readings)] if len(readings) > 1 else []
    for compare_all in both:
        try:
            comparisons.append(compare_all())
        except ConfigError as error:  # the other kind may still be comparable
            refused.append(error)
    if not comparisons and refused:
        raise refused[0]
    if not comparisons:
        words = [
            (place, ["scores on tasks"] * bool(a) + ["losses at context lengths"] * bool(b)) for place, a, b in entrants
        ]
        held = [*(f"{place} has {' and '.join(each)}" for place, each in words), *loaded.damaged.values()]
        raise ConfigError(f"a comparison needs two results of one kind: {'; '.join(held)}. {HOW}")
    left_out += [f"Not compared: {error}." for error in refused]
    return [*comparisons[:-1], replace(comparisons[-1], notes=(*left_out, *comparisons[-1].notes))]


def how_to_pair(loaded: Loaded) -> str:
    """Return a sentence on the command that pairs runs by seed; empty unless the runs differ in their seed."""
    runs = list(loaded.runs.values())
    if len({str(run.config.get("seed")) for run in runs}) < 2:
        return ""
    folders = " ".join(dict.fromkeys(str(run.path.parent) for run in runs))
    return f"These runs differ in their seed. `gptstar report {folders}` pairs runs by seed, with intervals over seeds."


def _on_shared_tasks(tasks: Sequence[TaskResults]) -> Comparisons:
    """Compare all results that share a task with the reference, and note the others.

    Raises:
        ConfigError: no result shares a task with the reference.
    """
    names = names_of([each.checkpoint for each in tasks])
    known = {task.task for task in tasks[0].tasks}
    shares = [bool(known & {task.task for task in each.tasks}) for each in tasks]
    if sum(shares) < 2:
        return compare_tasks(tasks)
    compared = compare_tasks([each for each, is_shared in zip(tasks, shares, strict=True) if is_shared])
    others = [name for name, is_shared in zip(names, shares, strict=True) if not is_shared]
    left_out = [f"Left out: {name}, which shares no task with A." for name in others]
    return replace(compared, notes=(*left_out, *compared.notes))


def _of_one_study(entrants: Sequence[Sequence[Reading]]) -> tuple[list[Reading], list[str]]:
    """Return the readings of the newest study that all entrants have, on the same targets if possible, and notes.

    Without a common study, return the newest reading of each entrant; these can't be compared.
    """
    if not entrants:
        return [], []
    readings = _shared(entrants, lambda reading: (reading.study, reading.targets))
    readings = readings or _shared(entrants, lambda reading: reading.study) or [newest for newest, *_ in entrants]
    used, others = (
        list(dict.fromkeys(f"{each.study}, targets {each.targets[:8] or 'unknown'}" for each in of_some))
        for of_some in (readings, [each for of_one in entrants for each in of_one])
    )
    return readings, [f"Left out: the readings with {each}." for each in others if each not in used]


def _shared(entrants: Sequence[Sequence[Reading]], key: Callable[[Reading], Hashable]) -> list[Reading]:
    """Return each model's newest reading with the newest key of the reference that all entrants have."""
    keys = [[key(each) for each in of_one] for of_one in entrants]
    chosen = next((each for each in keys[0] if all(each in of_one for of_one in keys)), None)
    models: dict[tuple[int, str, str], Reading] = {}
    for number, of_one in enumerate(entrants):
        for each in of_one:
            if key(each) == chosen:
                models.setdefault((number, str(each.checkpoint.get("sha256")), str(each.checkpoint["name"])), each)
    return list(models.values())


def _entrants(loaded: Loaded) -> Iterator[Entrant]:
    """Yield the entrants of each path: each evaluated run below it, and each folder of results outside a run.

    A file that an earlier path contained is not repeated.

    Raises:
        ConfigError: there are no results below a path.
    """
    tasks, readings, given = loaded.task_results(), _readings(loaded), set[Path]()
    for path in loaded.paths:
        known = (*tasks, *readings, *loaded.damaged)
        below = [file for file in known if file.is_relative_to(path.resolve())]
        if not below:
            raise ConfigError(f"{path} holds no results to compare: {HOW}")
        own = (path / FILE_NAME).resolve()
        named = [file for file in ([own] if own in below else below) if file not in given]
        given.update(named)
        for home in sorted({home_of(file) for file in named}, key=natural_key):
            files = [file for file in loaded.evaluations if file in named and home_of(file) == home]
            of_home = by_checkpoint([tasks[file] for file in files if file in tasks])[::-1]
            read = [each for file in reversed(files) for each in readings.get(file, ())]
            if of_home or read:
                yield Entrant(home, of_home, read)


def _readings(loaded: Loaded) -> dict[Path, list[Reading]]:
    """Return the curves in each readable file of a length study."""

    def read(file: Path) -> list[Reading]:
        tree, readings = loaded.evaluations[file], []
        for curve in (each for each in tree["curves"] if context_of(each) == "full"):
            checkpoint = {"name": home_of(file).name} | curve["checkpoint"]
            if (scaling := scaling_of(curve)) != "none":
                checkpoint["name"] = f"{checkpoint['name']}, {scaling}"
            study = study_of(tree, curve)
            readings.append(Reading.parse(tree["protocol"]["protocol"], study, curve, checkpoint))
        return readings

    files = [file for file, tree in loaded.evaluations.items() if tree.get("kind") == "length"]
    return {file: curves for file in files if (curves := loaded.of_file(file, read))}

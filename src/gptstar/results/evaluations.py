"""Evaluations as pandas frames: a line is a loss at a context length, or a score on a task."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gptstar.errors import in_one_line
from gptstar.evaluation.results import FILE_NAME
from gptstar.files import read_json
from gptstar.keys import flatten
from gptstar.results.run import DESCRIPTION, Run, labelled, runs_below
from gptstar.results.sources import MissingResultsWarning, Source, expand
from gptstar.terminal import plain

REPORT = "report.json"
"""What a run with `report: true` writes about itself, among others the loss at several context lengths."""

LENGTH_FIGURES = (
    *("study", "run", "trained_at", "rotary_scaling", "context_length", "multiple"),
    *("loss", "low", "high", "change", "change_low", "change_high", "reference"),
    *("perplexity", "bits_per_byte", "targets"),
)

TASK_FIGURES = ("run", "checkpoint", "task", "metric", "subset", "value", "low", "high", "items")

Lines = Iterator[tuple[Any, ...]]


class DamagedWarning(UserWarning):
    """A run or an evaluation that can't be read, and is left out."""


@dataclass(frozen=True)
class Evaluation:
    """What one file says of one checkpoint.

    Attributes:
        run: the name of the run that was evaluated; of the folder, where that is not among the runs.
        tree: the file, as `results.json` has it.
        part: what is said of this checkpoint: one of the file's curves, or all of it.
        trained_at: the context length in training, in tokens, by the run's configuration; NaN if it is not known.
    """

    run: str
    tree: Mapping[str, Any]
    part: Mapping[str, Any]
    trained_at: float


def lengths(*sources: Source) -> pd.DataFrame:
    """List loss against context length, from studies of length and from what runs wrote about themselves.

    Args:
        sources: run directories, folders of such, folders with a `results.json` of `evaluation=length`, such files,
            patterns, and lists. A study that is of none of the runs given has its folder's name as `run`.

    Returns:
        The columns of `LENGTH_FIGURES`. `study` says how and on what it was read: losses are comparable within one.
        `trained_at`, `context_length` and `reference` are in tokens, and `multiple` is of `trained_at`. `loss`, with
        its 95 % interval over the text from `low` to `high`, is in nats per token. `change` is that of the loss against
        the context length `reference` on the same targets, paired, with its 95 % interval from `change_low` to
        `change_high`; NaN at the reference. `bits_per_byte` is NaN if the tokenizer does not tell. `targets` is how
        many tokens were scored. There is no line where a model is undefined. Of two evaluations of a run by the same
        study the later one counts. If there is none, a `MissingResultsWarning` says how to get one.

    Raises:
        ConfigError: a source does not exist.
    """
    frame = pd.DataFrame(_evaluated(sources, "length", _length_lines), columns=list(LENGTH_FIGURES))
    if frame.empty:
        advice = "run `python evaluate.py evaluation=length checkpoint=RUN`, or train with reading.multiples=[1,2,4,8]"
        _warn_of_none(sources, "reading at several context lengths", advice)
    return frame.drop_duplicates(["study", "run", "rotary_scaling", "context_length"], keep="last", ignore_index=True)


def tasks(*sources: Source) -> pd.DataFrame:
    """List scores on tasks.

    Args:
        sources: as for `lengths`, with a `results.json` of `evaluate.py` on tasks.

    Returns:
        The columns of `TASK_FIGURES`: `value` with its 95 % interval over items from `low` to `high` (NaN without one)
        in the metric's own unit, such as a share of items from 0 to 1 for `acc`; `subset` is `all` or `clean`, those
        that training never saw. If there is none, a `MissingResultsWarning` says how to get one.

    Raises:
        ConfigError: a source does not exist.
    """
    frame = pd.DataFrame(_evaluated(sources, "tasks", _task_lines), columns=list(TASK_FIGURES))
    if frame.empty:
        advice = "run `python evaluate.py checkpoint=RUN output=results/NAME`, and give results/NAME as well"
        _warn_of_none(sources, "score on a task", advice)
    return frame


def _warn_of_none(sources: Sequence[Source], what: str, advice: str) -> None:
    paths = expand(sources)
    n = len(runs_below(paths))
    where = f"none of these {n} runs has a" if n > 1 else "this run has no" if n else "there is no"
    there = "" if n else f" in {', '.join(map(str, paths))}"
    warnings.warn(f"{where} {what}{there}: {advice}", MissingResultsWarning, stacklevel=3)


def _length_lines(evaluation: Evaluation) -> Lines:
    curve = evaluation.part
    study = study_of(evaluation.tree)
    trained_at = _number(curve["trained_at"] or evaluation.trained_at)
    reference = _number(curve.get("reference"))
    for point in (each for each in curve["lengths"] if each["loss"] is not None):
        length, loss, bits = _number(point["context_length"]), point["loss"], point["bits_per_byte"]
        change = point.get("change") or {}
        yield (
            *(study, evaluation.run, trained_at, str(curve["rotary_scaling"]), length, length / trained_at),
            *(_number(loss["value"]), _number(loss["low"]), _number(loss["high"])),
            *(_number(change.get("difference")), _number(change.get("low")), _number(change.get("high")), reference),
            *(_number(point["perplexity"]["value"]), _number(bits["value"]) if bits else math.nan),
            _number(point["tokens"]),
        )


def study_of(tree: Mapping[str, Any], sizes: Sequence[str] = ("max_tokens",)) -> str:
    """What has to be the same for losses at context lengths to be compared: the protocol and the text.

    Args:
        sizes: keys of the protocol that only say how much was read.
    """
    protocol, text = tree["protocol"], tree["text"]
    words = [protocol["protocol"]]
    words += [f"{key} {protocol[key]}" for key in ("targets", "room", "stride", *sizes) if protocol.get(key)]
    return ", ".join(words) + f", text {str(text.get('fingerprint') or text.get('text'))[-12:]}"


def _task_lines(evaluation: Evaluation) -> Lines:
    tree = evaluation.tree
    for task in tree["tasks"]:
        for metric in task["metrics"]:
            names = (tree["checkpoint"]["name"], task["task"], metric["name"], metric["subset"] or "all")
            yield evaluation.run, *map(str, names), *(_number(metric[key]) for key in ("value", "low", "high", "items"))


def _evaluated(sources: Sequence[Source], kind: str, lines_of: Callable[[Evaluation], Lines]) -> list[tuple[Any, ...]]:
    """Read every evaluation of a kind that sources name or hold, in the order of their dates.

    Args:
        lines_of: makes lines of an evaluation. Where it fails, the evaluation is damaged: it is left out, with a
            warning.
    """
    paths = expand(sources)
    runs = {name: run for name, run in labelled(runs_below(paths)).items() if run.state != "damaged"}
    files = evaluation_files(paths)
    places = _places(files, runs)
    lines: list[tuple[Any, ...]] = []
    for file in files:
        try:
            tree = read_evaluation(file)
            if tree is not None and tree.get("kind") == kind:
                lines += [line for each in _parts(file, tree, runs, places[file]) for line in lines_of(each)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else in_one_line(error)
            warnings.warn(f"{file} is damaged: {problem}", DamagedWarning, stacklevel=3)
    return lines


def evaluation_files(paths: Sequence[Path]) -> list[Path]:
    """List the files of evaluations among some paths and below them, the oldest first."""
    files = {path.resolve() for path in paths if not path.is_dir()}
    for path in (path for path in paths if path.is_dir()):
        files |= {file.resolve() for file in path.rglob(FILE_NAME)}
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
    if isinstance(curve := tree.get("curve"), dict):
        head = {key: tree.get(key) or curve[key] for key in ("protocol", "text")}
        return {"kind": "length", **head, "curves": [{"checkpoint": {}, "rotary_scaling": "none"} | curve]}
    if not tree.get("lengths"):
        return None
    # Until the protocol was written too, it was this one.
    run = Run.read(file.parent)
    protocol = {"protocol": "disjoint", "max_tokens": flatten(run.config).get("data.validation_tokens")}
    curve = {
        "checkpoint": {},
        "rotary_scaling": "none",
        "trained_at": None,
        "reference": min(point["context_length"] for point in tree["lengths"]),
        "lengths": tree["lengths"],
    }
    text = {"fingerprint": str(run.about.get("data"))}
    return {"kind": "length", "protocol": protocol, "text": text, "curves": [curve]}


def _places(files: Sequence[Path], runs: Mapping[str, Run]) -> dict[Path, str]:
    """Name the home of each file, without the folders that all are in that are of no run."""
    homes = {file: home_of(file) for file in files}
    folders = {run.path.resolve() for run in runs.values()}
    parents = [home.parent for home in homes.values() if home not in folders]
    shared = os.path.commonpath(parents) if parents else "/"
    return {file: plain(os.path.relpath(home, shared)) for file, home in homes.items()}


def home_of(file: Path) -> Path:
    """Find the run directory around a file of results; the file's folder, where it is in none."""
    return next((each for each in file.parents if (each / DESCRIPTION).exists()), file.parent)


def _parts(file: Path, tree: dict[str, Any], runs: Mapping[str, Run], place: str) -> Iterator[Evaluation]:
    """The parts of an evaluation that are each of one checkpoint, with the names of the runs, where they are here."""
    parts = tree["curves"] if tree["kind"] == "length" else [tree]
    folders = {run.path.resolve(): name for name, run in runs.items()}
    by_place = next((name for folder, name in folders.items() if file.is_relative_to(folder)), None)
    several = len({str(part["checkpoint"].get("sha256")) for part in parts}) > 1
    for part in parts:
        checkpoint = part["checkpoint"]
        home = Path(checkpoint["path"]).parent if checkpoint.get("path") else file.parent
        name = folders.get(home, None if several else by_place)  # the folder's own run may be one of several
        run = runs.get(name) if name is not None else Run.read(home) if (home / DESCRIPTION).is_file() else None
        if name is None:
            name = f"{place}: {plain(str(checkpoint.get('name')))}" if several else place
            name += " (results)" if name in runs else ""
        trained_at = flatten(run.config).get("data.context_length") if run is not None else None
        yield Evaluation(name, tree, part, _number(trained_at))


def _number(value: Any) -> float:
    """A figure; NaN where there is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.60} is not a number")
    return value

"""Runs and evaluations as pandas frames: a line is a run, a recorded value, or a figure of an evaluation."""

import functools
import math
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gptstar.errors import ConfigError, in_one_line
from gptstar.files import read_json
from gptstar.keys import about, flatten
from gptstar.results.run import Run, find_runs, labelled
from gptstar.terminal import plain
from gptstar.training.settings import run_keys

FIGURES = (
    *("run", "path", "state", "step", "tokens", "validation_loss", "validation_bits_per_byte", "train_loss"),
    *("tokens_per_second", "hours", "began", "at"),
)
"""Columns of `runs` that are not settings."""

EXPERIMENT = "experiment"
"""The column of `runs` for arms that differ in whole experiments: bundles of settings."""

LENGTH_FIGURES = (
    *("study", "run", "trained_at", "rotary_scaling", "context_length", "multiple"),
    *("loss", "low", "high", "perplexity", "bits_per_byte", "targets"),
)

AT_EDGE = "best_rate_at_edge"
"""The column of runs at their arm's best learning rate that says whether this is the lowest or highest of several."""

TASK_FIGURES = ("run", "checkpoint", "task", "metric", "subset", "value", "low", "high", "items")


class DamagedWarning(UserWarning):
    """A run or an evaluation that can't be read, and is left out."""


_declared = functools.cache(run_keys)


def runs(*paths: Path | str) -> pd.DataFrame:
    """Make a line for each run in some folders.

    Returns:
        The columns of `FIGURES`, losses in nats a token; then every setting by its dotted key, such as `model.d_model`,
        with the word `null` if it has no value, and `data.fingerprint` for the tokens; and a group that was chosen on
        every command line, such as `model`, by its choice. `experiment` has the experiments' names if runs of one
        folder, as of a sweep over `experiment=a,b`, differ in them.

    Raises:
        ConfigError: there is no run that can be read.
    """
    by_name = _labelled(paths)
    lines, groups = [], []
    for name, run in by_name.items():
        figures = {key: getattr(run, key) for key in FIGURES if key not in ("run", "path")}
        settings = {  # of lists and groups as text, which frames can group by
            plain(key): plain(str(value)) if isinstance(value, str | list | dict) else value
            for key, value in flatten(run.config).items()
        }
        settings["data.fingerprint"] = str(run.about.get("data"))[:12]
        lines.append({"run": name, "path": plain(str(run.path))} | figures | settings)
        groups.append({key: value for key, value in _overrides(run) if isinstance(run.config.get(key), dict)})
    frame = pd.DataFrame(lines)
    for key in (key for key in frame if key not in FIGURES and frame[key].isna().any()):
        frame[key] = frame[key].astype(object).where(frame[key].notna(), "null")
    for key in groups[0]:
        if all(key in chosen for chosen in groups):  # else it was left at its default in some
            frame[key] = [chosen[key] for chosen in groups]
    folders = pd.Series([run.path.resolve().parent for run in by_name.values()])
    names = pd.Series([str(run.config.get("name")) for run in by_name.values()])
    if (names.groupby(folders).nunique() > 1).any():
        frame[EXPERIMENT] = names
    return frame


def curves(*paths: Path | str) -> pd.DataFrame:
    """List what runs recorded as they went: `run`, `step`, `tokens`, `metric` (as `validation/loss`), `value`."""
    return pd.DataFrame(
        [
            (name, int(row["step"]), int(row["step"]) * int(run.config["batch_tokens"]), metric, value)
            for name, run in _labelled(paths).items()
            for row in run.rows
            for metric, value in row.items()
            if metric not in ("step", "tokens")
        ],
        columns=["run", "step", "tokens", "metric", "value"],
    )


def lengths(*paths: Path | str) -> pd.DataFrame:
    """List loss against context length, from all studies of length in the folders that are of one of their runs.

    Returns:
        The columns of `LENGTH_FIGURES`: `study` says how and on what it was read, `multiple` is of `trained_at`, and
        `low` and `high` are the 95 % interval of the loss over the text. No line if a model is undefined. Of two
        evaluations of a run by the same study the later one counts.
    """
    frame = pd.DataFrame(_evaluated(paths, "length", _length_lines), columns=list(LENGTH_FIGURES))
    return frame.drop_duplicates(["study", "run", "rotary_scaling", "context_length"], keep="last", ignore_index=True)


def _length_lines(run: str, tree: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    curve = tree["part"]
    study, trained_at = _study(tree), _number(curve["trained_at"] or math.nan)
    for point in (each for each in curve["lengths"] if each["loss"] is not None):
        length, loss, bits = _number(point["context_length"]), point["loss"], point["bits_per_byte"]
        yield (
            *(study, run, trained_at, str(curve["rotary_scaling"]), length, length / trained_at),
            *(_number(loss["value"]), _number(loss["low"]), _number(loss["high"])),
            *(_number(point["perplexity"]["value"]), _number(bits["value"]) if bits else math.nan),
            _number(point["tokens"]),
        )


def _study(tree: dict[str, Any]) -> str:
    """What has to be the same for losses to be compared."""
    protocol, text = tree["protocol"], tree["text"]
    words = [protocol["protocol"]]
    words += [f"{key} {protocol[key]}" for key in ("targets", "room", "stride", "max_tokens") if protocol.get(key)]
    return ", ".join(words) + f", text {str(text.get('fingerprint') or text.get('text'))[-12:]}"


def tasks(*paths: Path | str) -> pd.DataFrame:
    """List `TASK_FIGURES`: scores on tasks, from all evaluations in the folders that are of one of their runs."""
    return pd.DataFrame(_evaluated(paths, "tasks", _task_lines), columns=list(TASK_FIGURES))


def _task_lines(run: str, tree: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for task in tree["tasks"]:
        for metric in task["metrics"]:
            names = (tree["checkpoint"]["name"], task["task"], metric["name"], metric["subset"] or "all")
            yield run, *map(str, names), *(_number(metric[key]) for key in ("value", "low", "high", "items"))


def damaged(*paths: Path | str) -> list[str]:
    """Say what can't be read in some folders, a line for each run and each evaluation."""
    runs = [f"{run.path} is damaged: {run.reason}" for run in _all_runs(paths).values() if run.state == "damaged"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lengths(*paths), tasks(*paths)
    return [*runs, *dict.fromkeys(str(each.message) for each in caught if each.category is DamagedWarning)]


def varied(frame: pd.DataFrame) -> list[str]:
    """Settings that differ between the runs of a frame, without those that say the same as an earlier one.

    The experiment comes before all that follows from it, a group that was chosen, such as `model`, before the keys in
    it, and the seed at the end.
    """
    settings = [key for key in frame.columns if is_setting(key)]
    settings.sort(key=lambda key: (key == "seed", "." in key, key != EXPERIMENT))
    factors: list[str] = []
    for key in settings:
        if frame[key].map(str).nunique() < 2:
            continue
        follows = factors and frame.groupby(factors, dropna=False)[key].nunique(dropna=False).max() < 2
        if not follows:
            factors.append(key)
    return factors


def is_setting(key: str) -> bool:
    """Whether a column of `runs` is a setting in which arms of a comparison may differ."""
    return key not in (*FIGURES, AT_EDGE) and (key == EXPERIMENT or about(key, _declared()).role.is_compared)


def _overrides(run: Run) -> Iterator[tuple[str, str]]:
    """Keys and values on the run's command line, or in the sweep that it belongs to."""
    try:
        words = shlex.split(run.about.get("command", ""))
    except ValueError:  # an older run's, not quoted
        return
    for word in words[2:]:
        key, is_pair, value = word.lstrip("+~").partition("=")
        if is_pair and not word.startswith("-"):
            yield key, value.strip("'\"")


def _all_runs(paths: Sequence[Path | str]) -> dict[str, Run]:
    return labelled(find_runs([Path(path) for path in paths]))


def _labelled(paths: Sequence[Path | str]) -> dict[str, Run]:
    """The runs that can be read, by their names; warns of the others.

    Raises:
        ConfigError: there is none.
    """
    by_name = _all_runs(paths)
    lines = [f"{run.path} is damaged: {run.reason}" for run in by_name.values() if run.state == "damaged"]
    if len(lines) == len(by_name):
        raise ConfigError(lines[0])
    for line in lines:
        warnings.warn(line, DamagedWarning, stacklevel=3)
    return {name: run for name, run in by_name.items() if run.state != "damaged"}


def _evaluated(
    paths: Sequence[Path | str], kind: str, lines_of: Callable[[str, dict[str, Any]], Iterator[tuple[Any, ...]]]
) -> list[tuple[Any, ...]]:
    """Read every evaluation of a kind below the folders, beside the runs or in them, in the order of their dates.

    Args:
        lines_of: makes lines of the name of the run that was evaluated and an evaluation, whose `part` is what it says
            of the one checkpoint. Where it fails, the evaluation is damaged: it is left out, with a warning.
    """
    names = {str(run.path.resolve()): name for name, run in _all_runs(paths).items() if run.state != "damaged"}
    files = {file.resolve() for path in paths for file in Path(path).rglob("results.json")}
    lines: list[tuple[Any, ...]] = []
    for file in sorted(files, key=lambda file: (file.stat().st_mtime if file.exists() else 0, file)):
        try:
            tree = read_json(file)
            if isinstance(tree, dict) and tree.get("kind") == kind:
                parts = tree["curves"] if kind == "length" else [tree]
                lines += [
                    line for name, part in _parts(file, parts, names) for line in lines_of(name, tree | {"part": part})
                ]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else in_one_line(error)
            warnings.warn(f"{file} is damaged: {problem}", DamagedWarning, stacklevel=3)
    return lines


def _parts(file: Path, parts: Any, names: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The parts of an evaluation that are each of one checkpoint, with the names of the runs, where they are here."""
    by_place = next((name for folder, name in names.items() if file.is_relative_to(folder)), None)
    if len({part["checkpoint"].get("sha256") for part in parts}) > 1:
        by_place = None  # the folder's own run is one of several
    for part in parts:
        name = names.get(str(Path(part["checkpoint"].get("path", "")).parent), by_place)
        if name is not None:
            yield name, part


def _number(value: Any) -> float:
    """A figure; NaN where there is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.60} is not a number")
    return value

"""Runs and evaluations as pandas frames: a line is a run, a recorded value, or a figure of an evaluation."""

import functools
import json
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gptstar.errors import ConfigError
from gptstar.keys import Declared, about, flatten
from gptstar.results.run import Run, find_runs, labels
from gptstar.training.settings import run_keys

FIGURES = (
    *("run", "path", "state", "step", "tokens", "validation_loss", "validation_bits_per_byte", "train_loss"),
    *("tokens_per_second", "hours", "began", "at"),
)
"""Columns of `runs` that are no setting."""

EXPERIMENT = "experiment"
"""The column of `runs` for arms that differ in whole experiments: bundles of settings."""

LENGTH_FIGURES = (
    *("study", "run", "trained_at", "rotary_scaling", "context_length", "multiple"),
    *("loss", "low", "high", "perplexity", "bits_per_byte", "targets"),
)

TASK_FIGURES = ("run", "checkpoint", "task", "metric", "subset", "value", "low", "high", "items")


def runs(*paths: Path | str) -> pd.DataFrame:
    """A line for each run in some folders.

    Returns:
        The columns of `FIGURES`, losses in nats a token; then every setting by its dotted key, such as `model.d_model`,
        with the word `null` where there is none, and `data.fingerprint` for the tokens; and a group that was chosen on
        every command line, such as `model`, by its choice. `experiment` has the experiments' names where runs of one
        folder, as of a sweep over `experiment=a,b`, differ in them.

    Raises:
        ConfigError: there is none; or one is damaged.
    """
    found = _find(paths)
    lines = []
    for name, run in zip(labels(found), found, strict=True):
        progress = (name, str(run.path), run.state, run.step, run.tokens)
        losses = (run.validation_loss, run.validation_bits_per_byte, run.train_loss)
        figures = (*progress, *losses, run.tokens_per_second, run.hours, run.began, run.at)
        settings = {key: _plain(value) for key, value in flatten(run.config).items()}
        settings["data.fingerprint"] = str(run.about.get("data"))[:12]
        chosen = {key: value for key, value in overrides(run).items() if isinstance(run.config.get(key), dict)}
        lines.append((dict(zip(FIGURES, figures, strict=True)) | settings, chosen))
    frame = pd.DataFrame([line for line, _ in lines])
    for key in (key for key in frame if key not in FIGURES and frame[key].isna().any()):
        frame[key] = frame[key].astype(object).where(frame[key].notna(), "null")
    for key in dict.fromkeys(key for _, chosen in lines for key in chosen):
        if all(key in chosen for _, chosen in lines):  # else it was left at its default in some
            frame[key] = [chosen[key] for _, chosen in lines]
    folders = pd.Series([run.path.resolve().parent for run in found])
    names = pd.Series([str(run.config.get("name")) for run in found])
    if (names.groupby(folders).nunique() > 1).any():
        frame[EXPERIMENT] = names
    return frame


def curves(*paths: Path | str) -> pd.DataFrame:
    """What runs recorded as they went: `run`, `step`, `tokens`, `metric` (such as `validation/loss`), `value`."""
    found = _find(paths)
    return pd.DataFrame(
        [
            (name, int(row["step"]), int(row["step"]) * int(run.config["batch_tokens"]), metric, value)
            for name, run in zip(labels(found), found, strict=True)
            for row in run.rows
            for metric, value in row.items()
            if metric not in ("step", "tokens")
        ],
        columns=["run", "step", "tokens", "metric", "value"],
    )


def lengths(*paths: Path | str) -> pd.DataFrame:
    """Loss against context length, of all studies of length in the folders that are of one of their runs.

    Returns:
        The columns of `LENGTH_FIGURES`: `study` says how and on what it was read, `multiple` is of `trained_at`, and
        `low` and `high` are the 95 % interval of the loss over the text. No line where a model is undefined. Of two
        evaluations of a run by the same study the later one counts.
    """
    lines = []
    for owner, tree in _evaluations(paths, "length"):
        study = _study(tree)
        for curve in tree["curves"]:
            if (name := owner(curve["checkpoint"])) is None:
                continue
            trained_at = curve["trained_at"] or math.nan
            for point in (each for each in curve["lengths"] if each["loss"] is not None):
                length, loss, bits = point["context_length"], point["loss"], point["bits_per_byte"]
                of_curve = (study, name, trained_at, curve["rotary_scaling"], length, length / trained_at)
                of_loss = (loss["value"], loss["low"], loss["high"], point["perplexity"]["value"])
                lines.append((*of_curve, *of_loss, bits["value"] if bits else math.nan, point["tokens"]))
    found = pd.DataFrame(lines, columns=list(LENGTH_FIGURES))
    return found.drop_duplicates(["study", "run", "rotary_scaling", "context_length"], keep="last", ignore_index=True)


def _study(tree: dict[str, Any]) -> str:
    """What has to be alike for losses to be compared."""
    protocol, text = tree["protocol"], tree["text"]
    words = [protocol["protocol"]]
    words += [f"{key} {protocol[key]}" for key in ("targets", "room", "stride", "max_tokens") if protocol.get(key)]
    return ", ".join(words) + f", text {str(text.get('fingerprint') or text.get('text'))[-12:]}"


def tasks(*paths: Path | str) -> pd.DataFrame:
    """Scores on tasks of the harness, of all evaluations in the folders that are of one of their runs.

    Returns:
        The columns of `TASK_FIGURES`.
    """
    lines = []
    for owner, tree in _evaluations(paths, "tasks"):
        if (name := owner(tree["checkpoint"])) is None:
            continue
        for task in tree["tasks"]:
            for metric in task["metrics"]:
                checkpoint, subset = tree["checkpoint"]["name"], metric["subset"] or "all"
                whose = (name, checkpoint, task["task"], metric["name"], subset)
                lines.append((*whose, metric["value"], metric["low"], metric["high"], metric["items"]))
    return pd.DataFrame(lines, columns=list(TASK_FIGURES))


def overrides(run: Run) -> dict[str, str]:
    """What was given on the run's command line, or by the sweep that it is of."""
    words = shlex.split(run.about.get("command", ""))[2:]
    pairs = [word.lstrip("+~").partition("=") for word in words if "=" in word and not word.startswith("-")]
    return {key: value.strip("'\"") for key, _, value in pairs}


def varied(frame: pd.DataFrame) -> list[str]:
    """Settings that differ between the runs of a frame, but for those that say the same as an earlier one.

    The experiment comes before all that follows from it, a group that was chosen, such as `model`, before the keys in
    it, and the seed at the end.
    """
    settings = [key for key in frame.columns if is_setting(key)]
    settings.sort(key=lambda key: (key == "seed", "." in key, key != EXPERIMENT))
    found: list[str] = []
    for key in settings:
        values = frame[key].map(str)
        if values.nunique() < 2:
            continue
        groups = frame.groupby(found, dropna=False)[key] if found else None
        if groups is not None and (groups.nunique(dropna=False) < 2).all():
            continue  # follows from what is there
        found.append(key)
    return found


def is_setting(key: str) -> bool:
    """Whether a column of `runs` is a setting in which arms of a comparison may differ."""
    return key not in FIGURES and (key == EXPERIMENT or about(key, _known()).role.is_compared)


@functools.cache
def _known() -> dict[str, Declared]:
    return run_keys()


def _find(paths: Sequence[Path | str]) -> list[Run]:
    return find_runs([Path(path) for path in paths])


Owner = Callable[[dict[str, Any]], str | None]
"""The run that an evaluated checkpoint is of, if it is one of those that were asked for."""


def _evaluations(paths: Sequence[Path | str], kind: str) -> Iterator[tuple[Owner, dict[str, Any]]]:
    """Every evaluation of a kind below the folders, beside the runs or in them, in the order of their dates."""
    found = _find(paths)
    names = {str(run.path.resolve()): name for name, run in zip(labels(found), found, strict=True)}
    files = {file.resolve() for path in paths for file in Path(path).rglob("results.json")}
    for file in sorted(files, key=lambda file: (file.stat().st_mtime, file)):
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{file} is damaged: {error}") from error
        if not isinstance(tree, dict) or tree.get("kind") != kind:
            continue
        inside = next((name for folder, name in names.items() if file.is_relative_to(folder)), None)
        several = len({curve["checkpoint"].get("sha256") for curve in tree.get("curves", ())}) > 1

        def owner(checkpoint: dict[str, Any], moved: str | None = None if several else inside) -> str | None:
            return names.get(str(Path(checkpoint.get("path", "")).parent)) or moved

        yield owner, tree


def _plain(value: Any) -> Any:
    """A list as text: what frames can group by."""
    return str(value) if isinstance(value, list | dict) else value

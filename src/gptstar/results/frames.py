"""Runs as pandas frames, with a row per run or per recorded value. Frames of evaluations are in `evaluations`."""

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from gptstar.keys import about, flatten
from gptstar.results.loaded import Loaded
from gptstar.results.run import Run
from gptstar.results.sources import Source
from gptstar.terminal import plain
from gptstar.training.settings import run_keys

FIGURES = (
    *("run", "path", "state", "step", "tokens", "validation_loss", "validation_bits_per_byte", "train_loss"),
    *("tokens_per_second", "hours", "began", "at", "is_tuning"),
)
"""The columns of `runs` that are not settings."""

CURVE_FIGURES = ("run", "step", "tokens", "metric", "value")

EXPERIMENT = "experiment"
"""The column of `runs` with the experiment, for arms that are whole experiments."""

AT_EDGE = "best_rate_at_edge"
"""The column that says whether an arm's best learning rate is the lowest or highest of those tried."""

_declared = functools.cache(run_keys)


def runs(*sources: Source) -> pd.DataFrame:
    """Return a frame with a row for each run.

    Args:
        sources: run directories, folders that contain some at any depth, patterns such as `"runs/*-seed-*"`, and lists.

    Returns:
        The columns of `FIGURES`: `validation_loss` and `train_loss` in nats per token, `validation_bits_per_byte`,
        `tokens` read in training, `tokens_per_second` (the median), `hours` of training without validation, `began` and
        `at` (when it last wrote) in UTC, and `is_tuning` for the runs of a tuned sweep that only chose a value. Then
        every setting by its dotted key, such as `model.d_model`, with the word `null` if it has no value, and
        `data.fingerprint` for the tokens. A group that every command line chose, such as
        `model`, has a column with the choice. `experiment` has the experiments' names if runs of one folder, such as a
        sweep over `experiment=a,b`, differ in them. Without runs, no rows and a `MissingResultsWarning`.

    Raises:
        ConfigError: a source does not exist.
    """
    return _frame_of(sources, runs_of)


def runs_of(loaded: Loaded) -> pd.DataFrame:
    """Return the frame of `runs` from loaded results."""
    if not loaded.runs:
        return pd.DataFrame(columns=list(FIGURES))
    lines, groups = [], []
    for name, run in loaded.runs.items():
        figures = {key: getattr(run, key) for key in FIGURES if key not in ("run", "path")}
        settings = {  # lists and groups become text, by which frames can be grouped
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
        if all(key in chosen for chosen in groups):  # otherwise some runs have the default
            frame[key] = [chosen[key] for chosen in groups]
    folders = pd.Series([run.path.resolve().parent for run in loaded.runs.values()])
    names = pd.Series([str(run.config.get("name")) for run in loaded.runs.values()])
    if (names.groupby(folders).nunique() > 1).any():
        frame[EXPERIMENT] = names
    return frame


def curves(*sources: Source) -> pd.DataFrame:
    """Return a frame with a row for each value that runs recorded during training.

    Returns:
        The columns `run`, `step`, `tokens` read up to then, `metric` (such as `train/loss` and `validation/loss`, in
        nats per token) and `value`. Without runs, no rows and a `MissingResultsWarning`.

    Raises:
        ConfigError: a source does not exist.
    """
    return _frame_of(sources, curves_of)


def curves_of(loaded: Loaded) -> pd.DataFrame:
    """Return the frame of `curves` from loaded results."""
    return pd.DataFrame(
        [
            (name, int(row["step"]), int(row["step"]) * int(run.config["batch_tokens"]), metric, value)
            for name, run in loaded.runs.items()
            for row in run.rows
            for metric, value in row.items()
            if metric not in ("step", "tokens")
        ],
        columns=list(CURVE_FIGURES),
    )


def _frame_of(sources: Sequence[Source], make: Callable[[Loaded], pd.DataFrame]) -> pd.DataFrame:
    """Make a frame, and warn about damaged files and, if there is no run, how to get one."""
    loaded = Loaded(sources)
    frame, where = make(loaded), ", ".join(map(str, loaded.paths))
    kind = "no run that can be read" if loaded.damaged else "no run"
    advice = f"{kind} in {where}: train one with python train.py output=runs/NAME"
    loaded.warn("" if loaded.runs else advice, depth=3)
    return frame


def varied(frame: pd.DataFrame) -> list[str]:
    """Return the settings that differ between the runs of a frame, without those that follow from an earlier one.

    The experiment comes before the settings that follow from it, a chosen group such as `model` before its keys, and
    the seed last.
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
    """Whether a column of `runs` is a setting that can distinguish arms."""
    return key not in (*FIGURES, AT_EDGE) and (key == EXPERIMENT or about(key, _declared()).role.is_compared)


def _overrides(run: Run) -> Iterator[tuple[str, str]]:
    """Yield keys and values on the run's command line, or in the sweep that it belongs to."""
    try:
        words = shlex.split(run.about.get("command", ""))
    except ValueError:  # older runs recorded commands without quotes
        return
    for word in words[2:]:
        key, is_pair, value = word.lstrip("+~").partition("=")
        if is_pair and not word.startswith("-"):
            yield key, value.strip("'\"")

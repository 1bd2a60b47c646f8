"""Runs as pandas frames: a line is a run, or a value that it recorded. Evaluations are in `evaluations`."""

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
    *("tokens_per_second", "hours", "began", "at"),
)
"""Columns of `runs` that are not settings."""

CURVE_FIGURES = ("run", "step", "tokens", "metric", "value")

EXPERIMENT = "experiment"
"""The column of `runs` for arms that differ in whole experiments: bundles of settings."""

AT_EDGE = "best_rate_at_edge"
"""The column of runs at their arm's best learning rate that says whether this is the lowest or highest of several."""

_declared = functools.cache(run_keys)


def runs(*sources: Source) -> pd.DataFrame:
    """Make a line for each run.

    Args:
        sources: run directories, folders that hold some at any depth, patterns such as `"runs/*-seed-*"`, and lists.

    Returns:
        The columns of `FIGURES`: `validation_loss` and `train_loss` in nats per token, `validation_bits_per_byte`,
        `tokens` read in training, `tokens_per_second` (the median), `hours` of training without validation, `began` and
        `at` (when it last wrote) in UTC. Then every setting by its dotted key, such as `model.d_model`, with the word
        `null` if it has no value, and `data.fingerprint` for the tokens; and a group that was chosen on every command
        line, such as `model`, by its choice. `experiment` has the experiments' names if runs of one folder, as of a
        sweep over `experiment=a,b`, differ in them. No line, and a `MissingResultsWarning`, if there is no run.

    Raises:
        ConfigError: a source does not exist.
    """
    return _frame_of(sources, runs_of)


def runs_of(found: Loaded) -> pd.DataFrame:
    """Make the frame of `runs`."""
    if not found.runs:
        return pd.DataFrame(columns=list(FIGURES))
    lines, groups = [], []
    for name, run in found.runs.items():
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
    folders = pd.Series([run.path.resolve().parent for run in found.runs.values()])
    names = pd.Series([str(run.config.get("name")) for run in found.runs.values()])
    if (names.groupby(folders).nunique() > 1).any():
        frame[EXPERIMENT] = names
    return frame


def curves(*sources: Source) -> pd.DataFrame:
    """List what runs recorded as they went.

    Returns:
        `run`, `step`, `tokens` read up to then, `metric` (as `train/loss` and `validation/loss`, in nats per token) and
        `value`. No line, and a `MissingResultsWarning`, if there is no run.

    Raises:
        ConfigError: a source does not exist.
    """
    return _frame_of(sources, curves_of)


def curves_of(found: Loaded) -> pd.DataFrame:
    """Make the frame of `curves`."""
    return pd.DataFrame(
        [
            (name, int(row["step"]), int(row["step"]) * int(run.config["batch_tokens"]), metric, value)
            for name, run in found.runs.items()
            for row in run.rows
            for metric, value in row.items()
            if metric not in ("step", "tokens")
        ],
        columns=list(CURVE_FIGURES),
    )


def _frame_of(sources: Sequence[Source], make: Callable[[Loaded], pd.DataFrame]) -> pd.DataFrame:
    """Make a frame; warn of what is damaged and, if there is no run, how to get one."""
    found = Loaded(sources)
    frame, where = make(found), ", ".join(map(str, found.paths))
    kind = "no run that can be read" if found.damaged else "no run"
    advice = f"{kind} in {where}: train one with python train.py output=runs/NAME"
    found.warn("" if found.runs else advice, depth=3)
    return frame


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

"""What a notebook needs beside the frames: the folder that was typed, and advice where there is nothing to show."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from gptstar.errors import ConfigError
from gptstar.evaluation.compare import by_checkpoint
from gptstar.evaluation.results import TaskResults
from gptstar.results.arm_verdicts import VERDICT_FIGURES, verdicts
from gptstar.results.attention_heads import HEAD_FIGURES, heads
from gptstar.results.evaluations import LENGTH_FIGURES, TASK_FIGURES, lengths, tasks
from gptstar.results.frames import CURVE_FIGURES, FIGURES, curves, runs
from gptstar.results.loaded import Loaded
from gptstar.results.recall_frame import RECALL_FIGURES, recall
from gptstar.results.sources import MissingResultsWarning

T = TypeVar("T")

COLUMNS: dict[object, tuple[str, ...]] = {
    runs: FIGURES,
    curves: CURVE_FIGURES,
    lengths: LENGTH_FIGURES,
    tasks: TASK_FIGURES,
    heads: HEAD_FIGURES,
    recall: RECALL_FIGURES,
    verdicts: VERDICT_FIGURES,
}


def folder(variable: str, default: str = "runs") -> Path:
    """The folder that an environment variable names, relative to where the command that opened the notebook was typed.

    A kernel runs in the notebook's folder, but the shell's `PWD` says where it was started.
    """
    path = Path(os.environ.get(variable) or default).expanduser()
    here = Path.cwd()
    places = [Path(os.environ.get("PWD", here)) / path, here / path, here.parent / path]
    return next((place for place in places if place.exists()), places[0])


def load(read: Callable[[Path], pd.DataFrame], source: Path) -> pd.DataFrame:
    """Read a frame of `gptstar.results`; where there is nothing, print how to get it and return a frame without lines.

    Args:
        read: such as `results.runs`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frame = read(source)
        except ConfigError as error:
            print(error)
            return pd.DataFrame(columns=list(COLUMNS[read]))
    for each in caught:
        if issubclass(each.category, MissingResultsWarning):
            print(each.message)
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return frame


def evaluations(source: Path) -> list[TaskResults]:
    """Read the results on tasks below a folder, without the damaged ones; where there are none, print how to get them.

    Returns:
        One for each checkpoint, also where its tasks were evaluated one after another.
    """
    found = Loaded([source]) if source.exists() else None
    results = list(found.task_results().values()) if found is not None else []
    if found is not None:
        found.warn()
    if not results:
        print(f"no results on tasks in {source}: run `python evaluate.py checkpoint=RUN`, or set EVALUATIONS to theirs")
    return by_checkpoint(results)


def show(shown: T | None, otherwise: str) -> T | None:
    """Pass on what a cell ends with; print advice instead of an empty table or a missing figure."""
    if shown is None or (isinstance(shown, pd.DataFrame | Sequence) and not len(shown)):
        print(otherwise)
        return None
    return shown

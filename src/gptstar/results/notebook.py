"""What a notebook needs beside the frames: the folder that was typed, and advice where there is nothing to show."""

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from gptstar.errors import ConfigError
from gptstar.evaluation.results import TaskResults, read_tasks
from gptstar.results.evaluations import evaluation_files, read_evaluation
from gptstar.results.sources import MissingResultsWarning

T = TypeVar("T")


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
            with tempfile.TemporaryDirectory() as empty, warnings.catch_warnings(action="ignore"):
                return read(Path(empty))
    for each in caught:
        if issubclass(each.category, MissingResultsWarning):
            print(each.message)
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return frame


def evaluations(source: Path) -> list[TaskResults]:
    """Read the results on tasks below a folder; where there are none, print how to get them."""
    found = []
    for file in evaluation_files([source]) if source.exists() else ():
        tree = read_evaluation(file)
        if tree is not None and tree.get("kind") == "tasks":
            found.append(read_tasks(file))
    if not found:
        print(f"no results on tasks in {source}: run `python evaluate.py checkpoint=RUN`, or set EVALUATIONS to theirs")
    return found


def show(shown: T | None, otherwise: str) -> T | None:
    """Pass on what a cell ends with; print advice instead of an empty table or a missing figure."""
    if shown is None or (isinstance(shown, pd.DataFrame | Sequence) and not len(shown)):
        print(otherwise)
        return None
    return shown

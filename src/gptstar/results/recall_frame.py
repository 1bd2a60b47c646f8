"""Studies of recall as a pandas frame: a line is the share of right answers at a length, a depth or a load."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from gptstar.results.evaluations import Evaluation, Lines, flag, frame_of, lines_of_kind, number
from gptstar.results.loaded import Loaded
from gptstar.results.sources import Source

RECALL_FIGURES = (
    *("run", "checkpoint", "positions", "test", "trained_at", "context_length", "multiple", "depth", "pairs"),
    *("accuracy", "low", "high", "chance", "items", "learned"),
)

LOADS = "loads"
"""The test of lines that differ in how many pairs a text holds."""

ADVICE = "run `python evaluate.py evaluation=recall checkpoint=RUN output=results/NAME`, and give results/NAME"


def recall(*sources: Source) -> pd.DataFrame:
    """List how many answers of a model are right, by the length of the text and where the answer stands.

    Args:
        sources: run directories, folders of such, folders with a `results.json` of `evaluation=recall`, such files,
            patterns, and lists. A study that is of none of the runs given has its folder's name as `run`.

    Returns:
        The columns of `RECALL_FIGURES`. `positions` is the kind's name, "" if the results don't tell. `test` is
        `pairs` (associative recall at each length), `passkey`, or `loads` (associative recall among other numbers of
        `pairs`, at one length). `trained_at` and `context_length` are in tokens; `multiple` is their ratio. `depth` is
        where the answer stands, from 0 at the beginning to 1 next to the query; NaN: all depths together, and with
        `loads` any. `accuracy`, with its 95 % interval over texts from `low` to `high`, is a share from 0 to 1 of
        `items` answers, and `chance` that of a guess among the values of the text, or of the passkey test among all
        words. `learned` says whether 95 % are right at the training context. There is no line where a model is
        undefined. Of two evaluations of a checkpoint the later one counts. If there is no such study, a
        `MissingResultsWarning` says how to get one.

    Raises:
        ConfigError: a source does not exist.
    """
    return frame_of(sources, recall_of, "study of recall", ADVICE)


def recall_of(found: Loaded) -> pd.DataFrame:
    """Make the frame of `recall`."""
    frame = pd.DataFrame(lines_of_kind(found, "recall", _recall_lines), columns=list(RECALL_FIGURES))
    cell = ["run", "checkpoint", "test", "context_length", "depth", "pairs"]
    return frame.drop_duplicates(cell, keep="last", ignore_index=True)


def _recall_lines(evaluation: Evaluation) -> Lines:
    curve = evaluation.part
    trained_at, learned = number(curve["trained_at"]), bool(flag(curve["learned"]))
    names = (evaluation.run, str(curve["checkpoint"].get("name")), _positions(curve["checkpoint"].get("model") or {}))
    groups = (("lengths", str(curve["test"])), ("depths", str(curve["test"])), ("loads", LOADS))
    for key, test in groups:
        for cell in (each for each in curve[key] if each["accuracy"] is not None):
            length, accuracy = number(cell["context_length"]), cell["accuracy"]
            shares = [float(number(accuracy[end])) for end in ("value", "low", "high")] + [
                float(number(cell["chance"]))
            ]
            if not (0 <= shares[0] <= 1 and 0 < length / trained_at < math.inf):
                raise ValueError(f"{shares[0]:g} right at {length} of {trained_at} tokens is not a share at a length")
            at = (trained_at, length, length / trained_at, number(cell["depth"]), number(cell["pairs"]))
            yield *names, test, *at, *shares, number(cell["items"]), learned


def _positions(model: Mapping[str, Any]) -> str:
    """The name of a kind of positions that a model's configuration has, alone or with its settings."""
    positions = model.get("positions")
    return str(positions.get("kind", "") if isinstance(positions, Mapping) else positions or "")

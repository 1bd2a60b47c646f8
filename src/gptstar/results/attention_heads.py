"""Studies of attention heads as a pandas frame: a line is a head at a context length."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from gptstar.results.evaluations import Evaluation, Lines, flag, frame_of, lines_of_kind, number
from gptstar.results.loaded import Loaded
from gptstar.results.sources import Source

HEAD_FIGURES = (
    *("run", "checkpoint", "positions", "trained_at", "context_length", "multiple", "layer", "head", "slope"),
    *("beyond", "beyond_low", "beyond_high", "first", "first_low", "first_high", "mean_distance", "reach", "felt"),
    *("is_blind", "predicted_blind", "misses_first", "predicted_to_miss_first", "predicted_reach"),
)


def heads(*sources: Source) -> pd.DataFrame:
    """List where the weight of each attention head goes, at each context length.

    Args:
        sources: run directories, folders of such, folders with a `results.json` of `evaluation=heads`, such files,
            patterns, and lists. A study that is of none of the runs given has its folder's name as `run`.

    Returns:
        The columns of `HEAD_FIGURES`. `beyond` is the share of the weight at distances of the training context and
        more, from 0 to 1, `first` that on the first token, each with its 95 % interval over the text. `mean_distance`,
        `reach` (the farthest distance with a weight above zero), `felt` (with one of 2^-24 or more), `trained_at`,
        `context_length` and `predicted_reach` are in tokens. `is_blind` says whether every weight beyond the training
        context is zero, `misses_first` whether every weight on the first token is; None where no token is so far away.
        `slope` is NaN for positions without slopes, and what is predicted None unless the model has an attention
        window. If there is no such study, a `MissingResultsWarning` says how to get one.

    Raises:
        ConfigError: a source does not exist.
    """
    advice = "run `python evaluate.py evaluation=heads checkpoint=RUN output=results/NAME`, and give results/NAME"
    return frame_of(sources, heads_of, "study of attention heads", advice)


def heads_of(found: Loaded) -> pd.DataFrame:
    """Make the frame of `heads`."""
    return pd.DataFrame(lines_of_kind(found, "heads", _head_lines), columns=list(HEAD_FIGURES))


def _head_lines(evaluation: Evaluation) -> Lines:
    tree = evaluation.tree
    names = (evaluation.run, str(tree["checkpoint"]["name"]), str(tree["positions"]))
    trained_at = number(tree["trained_at"])
    for result in tree["lengths"]:
        length = number(result["context_length"])
        for head in result["heads"]:
            reach = tree["reaches"][head["head"] - 1] if tree["reaches"] else {}
            yield (
                *(*names, trained_at, length, length / trained_at, number(head["layer"]), number(head["head"])),
                *(number(reach.get("slope")), *_interval(head["beyond"]), *_interval(head["first"])),
                *(number(head[key]) for key in ("mean_distance", "reach", "felt")),
                *(
                    flag(head[key])
                    for key in ("is_blind", "predicted_blind", "misses_first", "predicted_to_miss_first")
                ),
                number(reach.get("farthest", reach.get("zero"))),
            )


def _interval(share: Mapping[str, Any] | None) -> tuple[float, float, float]:
    """A share with the ends of its interval; NaN where there is none."""
    if share is None:
        return math.nan, math.nan, math.nan
    return float(number(share["value"])), float(number(share["low"])), float(number(share["high"]))

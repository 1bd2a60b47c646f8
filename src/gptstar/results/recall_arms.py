"""Recall by arm: in how many seeds a kind of positions learned it, and how far those seeds recall."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from gptstar.plots.lines import Line, Point
from gptstar.plots.recall_curves import draw_recall_curves
from gptstar.plots.style import Figure
from gptstar.results.arms import SEED, arms_of, without_seed
from gptstar.results.evaluations import frame_of
from gptstar.results.extrapolation import readings
from gptstar.results.frames import runs_of, varied
from gptstar.results.loaded import Loaded
from gptstar.results.recall_frame import ADVICE, LOADS, recall_of
from gptstar.results.shares import mean_share
from gptstar.results.sources import Source
from gptstar.results.tried import counted

RATE_FIGURES = ("test", "pairs", "chance", "seeds", "learned", "multiple", "accuracy", "low", "high")
"""Columns of `recall_rates` after those that tell arms apart."""


def recall_rates(*sources: Source) -> pd.DataFrame:
    """Count the seeds in which each kind of positions learned to recall, and average how far those recall.

    Args:
        sources: as for `recall`. With run directories among them, an arm is all that was varied but the seed, and
            studies of other runs are left out. Without, it is the kind of positions, and each study is a seed.

    Returns:
        A line for each arm, `test`, number of `pairs` and `multiple` of the training context: columns for the arm, then
        those of `RATE_FIGURES`. `learned` of `seeds` have 95 % of the answers right at the training context. `accuracy`
        is the mean over those that learned, a share from 0 to 1, over all depths, with its 95 % interval from `low` to
        `high`: by Student's t over seeds, cut at 0 and 1 (without width where all seeds score the same); of one
        seed, over texts. An arm that did not learn has one line, with NaN for these and for `multiple`. If there is no
        study of recall, a `MissingResultsWarning` says how to get one.

    Raises:
        ConfigError: a source does not exist.
    """

    def make(found: Loaded) -> pd.DataFrame:
        runs = counted(runs_of(found))
        return rates(runs, recall_of(found), varied(runs))

    return frame_of(sources, make, "study of recall", ADVICE)


def rates(runs: pd.DataFrame, recall: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Make the frame of `recall_rates` from the frames of runs and of recall, and what `varied` finds in the runs."""
    keys = without_seed(factors) or ["positions"]
    rows = recall.assign(**{SEED: recall["run"]})
    if not runs.empty:
        rows = readings(runs, recall, factors)
        rows = rows if SEED in rows else rows.assign(**{SEED: 0})
    rows = rows[rows["depth"].isna() & (rows["test"] != LOADS)]
    lines = [
        {"test": test, "pairs": pairs, **line}
        for (test, pairs), of_test in rows.groupby(["test", "pairs"], sort=False)
        for _, of_arm in arms_of(of_test, keys)
        for line in _rates_of_arm(of_arm, keys)
    ]
    return pd.DataFrame(lines, columns=[*keys, *RATE_FIGURES])


def _rates_of_arm(rows: pd.DataFrame, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    has_learned = rows.groupby(SEED)["learned"].all()
    names = rows[keys].iloc[0].to_dict() | {"chance": rows["chance"].iloc[0]}
    names |= {"seeds": len(has_learned), "learned": int(has_learned.sum())}
    learned = rows[rows[SEED].map(has_learned).astype(bool)]
    for multiple, here in learned.groupby("multiple"):
        mean = mean_share(here, "accuracy")
        if len(here) == 1:
            mean = replace(mean, low=here["low"].iloc[0], high=here["high"].iloc[0])
        yield names | {"multiple": multiple, "accuracy": mean.value, "low": mean.low, "high": mean.high}
    if learned.empty:
        yield names | dict.fromkeys(("multiple", "accuracy", "low", "high"), math.nan)


def arm_keys(found: pd.DataFrame) -> list[str]:
    """List the columns of `recall_rates` that tell arms apart."""
    return [key for key in found.columns if key not in RATE_FIGURES]


def recall_figure(found: pd.DataFrame) -> Figure | None:
    """Draw recall against multiples of the training context, a line for each arm that learned.

    Args:
        found: of `recall_rates`, one test with one number of pairs.

    Returns:
        None if no arm learned.
    """
    lines, failed = [], []
    for name, rows in arms_of(found, arm_keys(found)):
        read = rows[rows["accuracy"].notna()]
        points = [Point(*each) for each in read[["multiple", "accuracy", "low", "high"]].itertuples(index=False)]
        if points:
            lines.append(Line(name, points))
        else:
            failed.append(name)
    return draw_recall_curves(lines, failed, float(found["chance"].iloc[0])) if lines else None

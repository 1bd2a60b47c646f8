"""How fast arms trained, where the runs are long enough to say it; and how many shared a machine."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from gptstar.results.factors import effect_table, level_effects
from gptstar.results.figures import speed_figure
from gptstar.results.section import Section
from gptstar.results.table import duration

LEAST_SECONDS, LEAST_SPEEDS = 60, 5
"""Training that a speed ratio takes of every run, and speeds that it recorded."""


def n_at_a_time(runs: pd.DataFrame) -> int:
    """How many runs overlapped at most, from when they began to when they last wrote."""
    began = runs["began"] + pd.Timedelta(seconds=1)  # which is recorded in whole seconds
    return max([1, *(int(((began < end) & (end <= runs["at"])).sum()) for end in runs["at"])])


def speed_section(
    finished: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str], against: str | None
) -> Section | None:
    """Compare tokens per second, or say why the runs are too short for that; None if no arm has a partner."""
    speed = level_effects(finished, factors, "tokens_per_second", against=against, ratio=True)
    if not speed:
        return None
    recorded = curves[(curves["metric"] == "tokens_per_second") & curves["run"].isin(finished["run"])]
    fewest = int(recorded.groupby("run").size().reindex(finished["run"], fill_value=0).min())
    shortest = 3600 * finished["hours"].min()
    if shortest < LEAST_SECONDS or fewest < LEAST_SPEEDS:
        text = (
            f"No ratio: the shortest run trained for {duration(shortest / 3600)} and a run recorded {fewest} "
            f"speeds. A ratio takes {LEAST_SECONDS} s and {LEAST_SPEEDS} speeds of every run."
        )
        return Section("Speed", text)
    at_once = n_at_a_time(finished)
    how = "no two runs overlapped in time" if at_once == 1 else f"up to {at_once} runs overlapped in time"
    text = (
        f"Ratios of tokens per second, without intervals: {how}, and what else the machines did is in the speeds, "
        "which more seeds don't take out. For a claim: `benchmarks/run.py`, interleaved."
    )
    table = effect_table([replace(each, effect=replace(each.effect, low=math.nan, high=math.nan)) for each in speed])
    columns = ["factor", "level", "against", "effect", "seeds", "cells"]
    return Section("Speed", text, table=table[columns], picture=speed_figure(finished, factors))

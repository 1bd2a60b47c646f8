"""How fast arms trained, where the runs are long enough to tell; and which runs shared a machine or took turns."""

from collections.abc import Iterator, Sequence
from statistics import median

import pandas as pd

from gptstar.results.arms import by_seed, levels_of, measured, without_seed
from gptstar.results.factors import reference_of
from gptstar.results.figures import speed_figure
from gptstar.results.section import Section
from gptstar.results.table import duration

LEAST_SECONDS, LEAST_SPEEDS = 60, 5
"""The training time and the number of recorded speeds that a speed ratio needs from every run."""
SPEED = "tokens_per_second"


def n_at_a_time(runs: pd.DataFrame) -> int:
    """Return the largest number of runs that overlapped, from when they began to when they last wrote."""
    began = runs["began"] + pd.Timedelta(seconds=1)  # which is recorded in whole seconds
    return max([1, *(int(((began < end) & (end <= runs["at"])).sum()) for end in runs["at"])])


def took_turns(runs: pd.DataFrame, factors: Sequence[str]) -> bool:
    """Return whether each arm began its next run only after every arm had begun as many, so that times compare."""
    arms = without_seed(factors)
    if not arms:
        return False
    begun = runs.sort_values("began", kind="stable").groupby(arms, sort=False, dropna=False).cumcount()
    return begun.nunique() > 1 and begun.is_monotonic_increasing


def deviating(runs: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Return the runs whose speed differs by more than half from the median of their arm, with that `median`."""
    recorded = measured(runs, SPEED)
    arms = without_seed(factors)
    if arms:
        medians = recorded.groupby(arms, dropna=False)[SPEED].transform("median")
    else:
        medians = pd.Series(recorded[SPEED].median(), index=recorded.index)
    return recorded.assign(median=medians)[(recorded[SPEED] - medians).abs() > medians / 2]


def deviation_text(runs: pd.DataFrame, factors: Sequence[str]) -> str:
    """Return a sentence on the runs that were much slower or faster than their arm's median; empty if none was."""
    odd = deviating(runs, factors)
    if odd.empty:
        return ""
    named = ", ".join(
        f"{run['run']} ({run[SPEED]:,.0f} tokens per second; median {run['median']:,.0f})"
        for run in odd.head(3).to_dict("records")
    )
    verb = "deviates" if len(odd) == 1 else "deviate"
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return f"{len(odd)} of {len(runs)} runs {verb} by more than half from the median speed of the arm: {named}{more}."


def speed_section(
    finished: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str], against: str | None
) -> Section | None:
    """Compare tokens per second, or say why the runs are too short for that; None if no arm has a partner."""
    table = pd.DataFrame(_ratios(finished, factors, against))
    if table.empty:
        return None
    recorded = curves[(curves["metric"] == SPEED) & curves["run"].isin(finished["run"])]
    fewest = int(recorded.groupby("run").size().reindex(finished["run"], fill_value=0).min())
    shortest = 3600 * finished["hours"].min()
    if shortest < LEAST_SECONDS or fewest < LEAST_SPEEDS:
        text = (
            f"No ratio: the shortest run trained for {duration(shortest / 3600)} and a run recorded {fewest} "
            f"speeds. A ratio takes {LEAST_SECONDS} s and {LEAST_SPEEDS} speeds of every run."
        )
        return Section("Speed", text)
    at_once = n_at_a_time(finished)
    how = "No two runs overlapped in time" if at_once == 1 else f"Up to {at_once} runs overlapped in time"
    turns = ", and arms took turns." if took_turns(finished, factors) else ", and arms did not take turns."
    text = (
        "The ratio is the median, over pairs of runs, of the ratio of tokens per second. "
        f"{how}{turns} No interval is given: other work on the machine can slow several runs in a row, "
        "and an interval over seeds would take that for a difference between arms. "
        f"{deviation_text(finished, factors)} To measure speed, run `benchmarks/run.py`, which alternates the arms."
    )
    return Section("Speed", text.replace("  ", " "), table=table, picture=speed_figure(finished, factors))


def _ratios(runs: pd.DataFrame, factors: Sequence[str], against: str | None) -> Iterator[dict[str, object]]:
    """Yield a line for each level of each factor: the median ratio to its reference over seeds and other settings."""
    for factor in without_seed(factors):
        others = [each for each in factors if each != factor]
        levels = levels_of(runs, factor)
        reference = reference_of(levels, against)
        speeds = {level: _speeds(runs[runs[factor] == level], others) for level in levels}
        for level in (each for each in levels if each != reference):
            ratios = [
                speed / speeds[reference][pair] for pair, speed in speeds[level].items() if pair in speeds[reference]
            ]
            if ratios:
                line = {"factor": factor, "level": level, "against": reference, "ratio": f"× {median(ratios):.3f}"}
                yield line | {"pairs": len(ratios)}


def _speeds(runs: pd.DataFrame, others: Sequence[str]) -> dict[tuple[object, object], float]:
    """Return the speed in each cell with each seed."""
    positive = runs[runs[SPEED] > 0]
    found = by_seed(positive, others, SPEED)
    return {(seed, cell): speed for seed, cells in found.items() for cell, speed in cells.items()}

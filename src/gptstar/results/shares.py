"""Shares from 0 to 1: their mean over seeds, and how they read as percent."""

import math
from dataclasses import replace

import pandas as pd

from gptstar.evaluation.statistics.effects import Effect, blocked_effect
from gptstar.results.arms import SEED, by_seed


def mean_share(rows: pd.DataFrame, column: str) -> Effect:
    """Average a share over seeds, with its 95 % interval by Student's t, cut at 0 and 1; NaN ends for one seed.

    Args:
        rows: of one arm, with a column for the seed; those of one seed count as their mean.

    Raises:
        ValueError: no row has a number.
    """
    mean = blocked_effect(by_seed(rows, [SEED], column))
    return replace(mean, low=max(mean.low, 0.0), high=min(mean.high, 1.0))  # NaN stays


def percent_text(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Write a share as percent, with its interval where there is one: `66.8 % [61.4, 71.8]`."""
    percents = [_percent(each) for each in (value, low, high)]
    return f"{percents[0]} %" + ("" if math.isnan(low) else f" [{', '.join(percents[1:])}]")


def _percent(share: float) -> str:
    """One decimal, or one digit of what is smaller."""
    return "0" if share == 0 else f"{100 * share:.1f}" if share >= 5e-4 else f"{100 * share:.0e}".replace("e-0", "e-")

"""The arms of a comparison, each with runs that differ in their seed only; their order and short names."""

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gptstar.plots.labels import level_texts

SEED, RATE, OUTCOME, BITS = "seed", "optimizer.learning_rate", "validation_loss", "validation_bits_per_byte"
CONTEXT = "data.context_length"


def name_of(factor: str) -> str:
    """Return the name of a setting in words: that of `data.context_length` is `training context`."""
    return "training context" if factor == CONTEXT else factor.rpartition(".")[2].replace("_", " ")


def names_of(factors: Sequence[str]) -> str:
    """Return the names of several settings, as the title of a legend of their levels."""
    return ", ".join(f"{name_of(each)}{' (tokens)' * (each == CONTEXT)}" for each in factors)


def outcome_of(runs: pd.DataFrame) -> str:
    """Return the column by which runs can be compared: the loss, or bits per byte if they have different tokens."""
    keys = ("model.n_vocab", "data.fingerprint")
    return BITS if any(runs[key].nunique() > 1 for key in keys if key in runs) else OUTCOME


def measured(runs: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """Return the runs with a finite outcome."""
    return runs[np.isfinite(pd.to_numeric(runs[outcome]))]


def by_seed(
    runs: pd.DataFrame, factors: Sequence[str], outcome: str, *, log: bool = False
) -> dict[Hashable, dict[Hashable, float]]:
    """Return the outcome, or its logarithm, of each seed in each cell; runs with identical settings are averaged.

    Args:
        runs: the runs.
        factors: all settings that vary between the runs; the combinations of all but the seed are the cells.
        outcome: the column of the outcome.

    Raises:
        ValueError: an outcome is not positive, so that it has no logarithm.
    """
    cells = without_seed(factors)
    values: dict[Hashable, dict[Hashable, list[float]]] = {}
    for run in measured(runs, outcome).to_dict("records"):
        seed = run[SEED] if SEED in factors else 0
        same = values.setdefault(seed, {}).setdefault(tuple(run[each] for each in cells), [])
        same.append(math.log(run[outcome]) if log else run[outcome])
    return {seed: {cell: sum(each) / len(each) for cell, each in of_seed.items()} for seed, of_seed in values.items()}


def without_seed(factors: Sequence[str]) -> list[str]:
    """Return the factors that distinguish arms: all but the seed."""
    return [each for each in factors if each != SEED]


def levels_of(frame: pd.DataFrame, factor: str) -> list[Any]:
    """Return the levels of a factor: numbers ascending, words in the order of the sweep (by when runs began)."""
    values = frame.sort_values("began")[factor] if "began" in frame.columns else frame[factor]
    levels = [value for value in values.drop_duplicates() if not (isinstance(value, float) and math.isnan(value))]
    return sorted(levels) if all(isinstance(level, int | float) for level in levels) else levels


def by_levels(runs: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Sort runs by the levels of their factors: numbers ascending, words in the order of the sweep."""
    place_of = {factor: {level: n for n, level in enumerate(levels_of(runs, factor))} for factor in factors}
    places = pd.DataFrame({factor: runs[factor].map(place_of[factor]) for factor in factors}, index=runs.index)
    order = places.sort_values(list(factors), kind="stable").index if factors else runs.index
    return runs.loc[order].reset_index(drop=True)


def arms_of(frame: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each arm with its name, such as `alibi, 0.001`, in the order of the levels.

    Args:
        frame: runs, or results of them, with columns for the keys.
        keys: the settings that distinguish arms; the name of an arm omits `none` for unscaled positions.
    """
    if not keys:
        yield "all runs", frame
        return
    texts = {}
    for key in keys:
        levels = levels_of(frame, key)
        texts[key] = dict(zip(levels, level_texts(levels), strict=True))
    for levels, rows in by_levels(frame, keys).groupby(list(keys), sort=False, dropna=False):
        named = [each for each in zip(keys, levels, strict=True) if each != ("scaling", "none")]
        shown = [texts[key].get(level, str(level)) for key, level in named]
        yield ", ".join(shown) or "all runs", rows

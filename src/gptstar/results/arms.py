"""The arms of a comparison: runs that differ in their seed alone, in the order of their levels, by short names."""

from collections.abc import Iterator, Sequence

import pandas as pd

from gptstar.plots.labels import level_texts
from gptstar.results.factors import SEED, levels_of


def without_seed(factors: Sequence[str]) -> list[str]:
    """The factors that tell arms apart."""
    return [each for each in factors if each != SEED]


def in_order(runs: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """The runs by the levels of their factors: numbers ascending, words as in the sweep."""
    places = pd.DataFrame({factor: runs[factor].map(_places(runs, factor)) for factor in factors}, index=runs.index)
    order = places.sort_values(list(factors), kind="stable").index if factors else runs.index
    return runs.loc[order].reset_index(drop=True)


def _places(runs: pd.DataFrame, factor: str) -> dict[object, int]:
    return {level: place for place, level in enumerate(levels_of(runs, factor))}


def arms_of(frame: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each arm with its name, such as `alibi, 0.001`, in the order of the levels.

    Args:
        frame: runs, or what was read of them, with columns for the keys.
        keys: all that tells arms apart. Rotary positions that are not scaled go without saying.
    """
    if not keys:
        yield "all runs", frame
        return
    texts = {}
    for key in keys:
        levels = levels_of(frame, key)
        texts[key] = dict(zip(levels, level_texts(levels), strict=True))
    for levels, rows in in_order(frame, keys).groupby(list(keys), sort=False, dropna=False):
        named = dict(zip(keys, levels, strict=True))
        shown = [texts[key].get(level, str(level)) for key, level in named.items() if not _is_plain(key, level)]
        yield ", ".join(shown) or "all runs", rows


def _is_plain(key: str, level: object) -> bool:
    return (key, level) == ("rotary_scaling", "none")

"""Effects of a design: what each level of a factor does, against the first, all else alike."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gptstar.evaluation.statistics.effects import Effect, blocked_effect

SEED, RATE, OUTCOME = "seed", "optimizer.learning_rate", "validation_loss"


@dataclass(frozen=True)
class LevelEffect:
    """What one level of a factor does to an outcome.

    Attributes:
        is_ratio: the effect is of a ratio, 1 where nothing changes; else a difference.
        left_out: runs without a partner that differs in this factor alone, or of seeds that lack some cell.
    """

    factor: str
    level: Any
    against: Any
    outcome: str
    effect: Effect
    is_ratio: bool
    left_out: int

    @property
    def value(self) -> str:
        """It, without its interval."""
        return f"× {math.exp(self.effect.value):.3f}" if self.is_ratio else f"{self.effect.value:+.4f}"

    @property
    def text(self) -> str:
        """The value with its interval."""
        if self.is_ratio:
            return ratio_text(self.effect)
        low, high = self.effect.low, self.effect.high
        return self.value if math.isnan(low) else f"{self.value} [{low:+.4f}, {high:+.4f}]"


def ratio_text(effect: Effect) -> str:
    """An effect on a logarithm, as a ratio with its interval."""
    interval = "" if math.isnan(effect.low) else f" [{math.exp(effect.low):.3f}, {math.exp(effect.high):.3f}]"
    return f"× {math.exp(effect.value):.3f}{interval}"


def effect(
    frame: pd.DataFrame,
    factor: str,
    level: Any,
    against: Any,
    *,
    factors: Sequence[str],
    outcome: str = OUTCOME,
    ratio: bool = False,
) -> LevelEffect:
    """Of a level against another: pairs of runs that differ in nothing else, averaged over cells, then over seeds.

    Runs that differ in nothing at all, as one that was repeated elsewhere, count as one, with their mean.

    Args:
        frame: of `runs`, or any with a line for each run, the factors and the outcome.
        factors: all settings that vary, the seed among them.
        ratio: of positive outcomes, such as speed: geometric means.

    Raises:
        ValueError: no two runs differ in this factor alone.
    """
    others = [each for each in factors if each != factor]
    cells = [each for each in others if each != SEED]

    def outcomes(value: Any) -> dict[tuple[Hashable, ...], float]:
        lines = frame[(frame[factor] == value) & frame[outcome].notna()]
        repeated: dict[tuple[Hashable, ...], list[float]] = {}
        for line in lines.to_dict("records"):
            key = tuple(line[each] for each in [*cells, *([SEED] if SEED in others else [])])
            repeated.setdefault(key, []).append(math.log(line[outcome]) if ratio else line[outcome])
        return {key: sum(values) / len(values) for key, values in repeated.items()}

    ones, twos = outcomes(against), outcomes(level)
    seeds: dict[Hashable, dict[Hashable, float]] = {}
    for key in ones.keys() & twos.keys():
        cell, seed = (key[:-1], key[-1]) if SEED in others else (key, 0)
        seeds.setdefault(seed, {})[cell] = twos[key] - ones[key]
    found = blocked_effect(seeds)
    left_out = len(ones) + len(twos) - 2 * found.n_seeds * found.n_cells
    return LevelEffect(factor, level, against, outcome, found, ratio, left_out)


def effects(
    frame: pd.DataFrame,
    factors: Sequence[str],
    outcome: str = OUTCOME,
    *,
    against: str | None = None,
    ratio: bool = False,
) -> list[LevelEffect]:
    """Compare every level of every factor but the seed with one of the factor's; levels without a pair are left out.

    Args:
        against: the level to compare with, in factors that have it; else the first.
    """
    found = []
    for factor in (each for each in factors if each != SEED):
        levels = levels_of(frame, factor)
        reference = reference_of(levels, against)
        for level in (each for each in levels if each != reference):
            try:
                found.append(effect(frame, factor, level, reference, factors=factors, outcome=outcome, ratio=ratio))
            except ValueError:
                continue
    return found


def reference_of(levels: Sequence[Any], against: str | None) -> Any:
    """The level that others are compared with: the one called so, else the first; None where there is none."""
    return next((each for each in levels if str(each) == against), next(iter(levels), None))


def effect_table(found: Sequence[LevelEffect], *, intervals: bool = True) -> pd.DataFrame:
    """Make a line for each effect."""
    return pd.DataFrame(
        [
            {
                "factor": each.factor,
                "level": each.level,
                "against": each.against,
                "effect": each.text if intervals else each.value,
                "p": "" if math.isnan(each.effect.p) else f"{each.effect.p:.2g}",
                "seeds": each.effect.n_seeds,
                "cells": each.effect.n_cells,
                "left out": each.left_out,
                "": each.effect.verdict,
            }
            for each in found
        ]
    )


def at_best_rate(frame: pd.DataFrame, factors: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Each arm at the learning rate that is best for it, by the mean over seeds, so that none is hurt by another's.

    A rate that lacks seeds which another rate of the arm has, where a run failed or is to come, is not chosen.

    Args:
        frame: of finished runs.

    Returns:
        The runs that are left, and the factors without the learning rate; all as it was where no rate was varied, or
        nothing but the rate.
    """
    others = [each for each in factors if each != RATE]
    arms = [each for each in others if each != SEED]
    tried = rates_tried(frame, factors)
    if not arms or tried.empty:
        return frame, list(factors)
    return frame.merge(tried.loc[tried["is_best"], [*arms, RATE]], on=[*arms, RATE]), others


def rates_tried(frame: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Every learning rate of every arm; empty where no rate was varied.

    Args:
        frame: of finished runs.

    Returns:
        The arms' factors, the learning rate, `seeds`, the mean `loss`, `is_best`, and `is_edge`: the arm's lowest or
        highest rate of several.
    """
    validated = frame[frame[OUTCOME].notna()]
    if RATE not in factors or validated.empty:
        return pd.DataFrame()
    arms = [each for each in factors if each not in (RATE, SEED)]
    grouped = validated.groupby([*arms, RATE], dropna=False, sort=False)
    rates = grouped.agg(seeds=(SEED if SEED in frame else RATE, "nunique"), loss=(OUTCOME, "mean")).reset_index()
    rates["is_best"] = rates["is_edge"] = False
    for _, of_arm in rates.groupby(arms, dropna=False) if arms else [((), rates)]:
        complete = of_arm[of_arm["seeds"] == of_arm["seeds"].max()]
        rates.loc[complete["loss"].idxmin(), "is_best"] = True
        if len(of_arm) > 1:
            rates.loc[[of_arm[RATE].idxmin(), of_arm[RATE].idxmax()], "is_edge"] = True
    return rates


def levels_of(frame: pd.DataFrame, factor: str) -> list[Any]:
    """Numbers ascending; words in the order in which the runs began, which is that of the sweep."""
    values = frame.sort_values("began")[factor] if "began" in frame.columns else frame[factor]
    levels = [value for value in values.drop_duplicates() if not (isinstance(value, float) and math.isnan(value))]
    return sorted(levels) if all(isinstance(level, int | float) for level in levels) else levels


def tokens_to(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """Tokens after which a loss was first reached, between two validations by a straight line in the logarithm.

    Args:
        curve: tokens and validation loss, in order; hours instead of tokens give hours.

    Returns:
        NaN where it never was.
    """
    before: tuple[float, float] | None = None
    for tokens, value in curve:
        if value <= loss:
            if before is None or before[1] <= value:
                return tokens
            share = (before[1] - loss) / (before[1] - value)
            return math.exp(math.log(before[0]) * (1 - share) + math.log(tokens) * share)
        before = tokens, value
    return math.nan

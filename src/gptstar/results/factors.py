"""The effects of factors: each level against the first, with all other settings equal."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gptstar.errors import ConfigError
from gptstar.evaluation.statistics.effects import Effect, blocked_effect
from gptstar.results.arms import by_seed, levels_of, outcome_of, without_seed
from gptstar.results.frames import AT_EDGE, varied
from gptstar.results.sources import MissingResultsWarning
from gptstar.results.tried import at_best_rate, counted

EFFECT_FIGURES = (
    *("factor", "level", "against", "outcome", "effect", "low", "high", "p"),
    *("seeds", "cells", "left_out", "verdict"),
)


@dataclass(frozen=True)
class LevelEffect:
    """The effect of one level of a factor on an outcome, against another level.

    Attributes:
        is_ratio: whether the effect is on the outcome's logarithm.
        left_out: the number of runs that have no partner differing in this factor only, or whose seed lacks a cell.
    """

    factor: str
    level: Any
    against: Any
    outcome: str
    effect: Effect
    is_ratio: bool
    left_out: int

    @property
    def text(self) -> str:
        """The effect with its interval."""
        return effect_text(self.effect, ratio=self.is_ratio)


def effect_text(effect: Effect, *, ratio: bool = False, sign: str = "+") -> str:
    """Format an effect with its interval, with more digits if that is narrow; an effect on a logarithm as a ratio."""
    ends = [effect.value] if math.isnan(effect.low) else [effect.value, effect.low, effect.high]
    texts = [f"{math.exp(end):.3f}" if ratio else f"{end:{sign}z.{digits(effect)}f}" for end in ends]
    interval = f" [{', '.join(texts[1:])}]" if texts[1:] else ""
    return ("× " * ratio + texts[0] + interval).replace("-", "−")


def digits(effect: Effect) -> int:
    """Return the digits after the decimal point that show two digits of the interval, or of the value without one.

    There are at least so many that no end of the interval rounds to zero, which would hide its sign.
    """
    width = abs(effect.value) if math.isnan(effect.low) else effect.high - effect.low
    least = 3 if width >= 5e-3 or width < 5e-6 else 4 if width >= 5e-4 else 5
    ends = [abs(end) for end in (effect.low, effect.high) if math.isfinite(end) and abs(end) >= 5e-6]
    return next((n for n in range(least, 5) if all(round(end, n) for end in ends)), 5) if ends else least


def effects(
    frame: pd.DataFrame,
    factors: Sequence[str] | None = None,
    outcome: str | None = None,
    *,
    against: str | None = None,
    ratio: bool = False,
) -> pd.DataFrame:
    """Compare every level of every factor but the seed with the factor's first level, as the report does.

    Args:
        frame: the frame of `runs`, of which finished runs count; or any frame with a row for each run, and columns for
            the factors and the outcome.
        factors: all settings that vary, including the seed; by default those of `varied`, with each arm at its best
            learning rate if several were tried, and without the runs of a tuned sweep that only chose a value.
        outcome: a column of the frame, such as `validation_loss` (nats per token) or `tokens_per_second`; by default
            the loss, or `validation_bits_per_byte` if the runs have different tokens.
        against: the reference level of factors that have it, as text.
        ratio: whether the effect is a ratio (of geometric means) instead of a difference, for positive outcomes such as
            speed.

    Returns:
        The columns of `EFFECT_FIGURES`: `effect` with its 95 % interval over seeds from `low` to `high` and its p, all
        NaN for a single seed; the number of `seeds`, and of `cells`, the combinations of other settings; the number of
        `left_out` runs without a partner; and the `verdict`: significant needs five seeds and p < 0.01. If no two runs
        differ in a single setting, no rows and a `MissingResultsWarning`.

    Raises:
        ConfigError: the frame lacks the outcome or a factor.
    """
    finished = frame[frame["state"] == "finished"] if "state" in frame else frame
    outcome = outcome or outcome_of(finished)
    if factors is None:
        finished = counted(finished)
        finished, factors = at_best_rate(finished, varied(finished))
    if lacks := [key for key in (outcome, *factors) if key not in finished]:
        raise ConfigError(f"the frame has no column {', '.join(lacks)}: choose from {', '.join(map(str, finished))}")
    lines = []
    for each in level_effects(finished, factors, outcome, against=against, ratio=ratio):
        ends = (each.effect.value, each.effect.low, each.effect.high)
        value, low, high = map(math.exp, ends) if ratio else ends
        evidence = (each.effect.n_seeds, each.effect.n_cells, each.left_out, each.effect.verdict)
        lines.append((each.factor, each.level, each.against, outcome, value, low, high, each.effect.p, *evidence))
    if not lines:
        advice = "sweep over a setting and the seed, such as python train.py -m seed=0,1,2 model.residual=A,B"
        message = f"no two of {len(finished)} finished runs differ in a single setting: {advice}"
        warnings.warn(message, MissingResultsWarning, stacklevel=2)
    return pd.DataFrame(lines, columns=list(EFFECT_FIGURES))


def level_effects(
    frame: pd.DataFrame,
    factors: Sequence[str],
    outcome: str | None = None,
    *,
    against: str | None = None,
    ratio: bool = False,
) -> list[LevelEffect]:
    """Compare every level of every factor but the seed with the factor's reference level.

    The comparison uses pairs of runs that differ in nothing else; levels without a pair are left out. Pairs are
    averaged over cells, then over seeds. Runs with identical settings, such as repetitions, count as one, with their
    mean.

    Args:
        frame: the frame of `runs`, or any frame with a row for each run, and columns for the factors and the outcome.
        factors: all settings that vary, including the seed.
        outcome: the column of the outcome; by default that of `outcome_of`.
        against: the reference level of factors that have it; other factors use their first level.
        ratio: whether to compare geometric means, for positive outcomes such as speed.
    """
    outcome = outcome or outcome_of(frame)
    results = []
    for factor in without_seed(factors):
        others = [each for each in factors if each != factor]
        levels = levels_of(frame, factor)
        reference = reference_of(levels, against)
        for level in (each for each in levels if each != reference):
            is_decided = AT_EDGE not in frame or not frame.loc[frame[factor].isin([reference, level]), AT_EDGE].any()
            try:
                before = by_seed(frame[frame[factor] == reference], others, outcome, log=ratio)
                after = by_seed(frame[frame[factor] == level], others, outcome, log=ratio)
                differences = {
                    seed: {cell: after[seed][cell] - value for cell, value in cells.items() if cell in after[seed]}
                    for seed, cells in before.items()
                    if seed in after
                }
                effect = replace(blocked_effect(differences), is_decided=is_decided)
            except ValueError:  # there is no pair, or a missing speed has no logarithm
                continue
            left_out = sum(map(len, [*before.values(), *after.values()])) - 2 * effect.n_seeds * effect.n_cells
            results.append(LevelEffect(factor, level, reference, outcome, effect, ratio, left_out))
    return results


def reference_of(levels: Sequence[Any], against: str | None) -> Any:
    """Return the reference level: the one named `against`, or else the first; None if there is no level."""
    return next((each for each in levels if str(each) == against), next(iter(levels), None))


def effect_table(level_effects: Sequence[LevelEffect]) -> pd.DataFrame:
    """Return a table with a row for each effect."""
    return pd.DataFrame(
        [
            {
                "factor": each.factor,
                "level": each.level,
                "against": each.against,
                "effect": each.text,
                **evidence(each.effect),
                "left out": each.left_out,
                "": each.effect.verdict,
            }
            for each in level_effects
        ]
    )


def evidence(effect: Effect) -> dict[str, Any]:
    """Return the cells of a table that describe the evidence for an effect."""
    p = "" if math.isnan(effect.p) else f"{effect.p:.2g}"
    return {"p": p, "seeds": effect.n_seeds, "cells": effect.n_cells}


def tokens_to(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """Return the tokens (or hours, if the curve has hours) at which a loss was first reached; NaN if it never was.

    The loss is interpolated over the logarithm between two validations.
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

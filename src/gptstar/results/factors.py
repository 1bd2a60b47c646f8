"""Effects of a design: each level of a factor against the first, all else the same."""

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
from gptstar.results.tried import at_best_rate

EFFECT_FIGURES = (
    *("factor", "level", "against", "outcome", "effect", "low", "high", "p"),
    *("seeds", "cells", "left_out", "verdict"),
)


@dataclass(frozen=True)
class LevelEffect:
    """The effect of one level of a factor on an outcome, against another level.

    Attributes:
        is_ratio: the effect is on the outcome's logarithm.
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
    def text(self) -> str:
        """The value with its interval."""
        return effect_text(self.effect, ratio=self.is_ratio)


def effect_text(effect: Effect, *, ratio: bool = False, sign: str = "+") -> str:
    """An effect with its interval, with more digits where it is narrow; an effect on a logarithm as a ratio."""
    ends = [effect.value] if math.isnan(effect.low) else [effect.value, effect.low, effect.high]
    texts = [f"{math.exp(end):.3f}" if ratio else f"{end:{sign}.{digits(effect)}f}" for end in ends]
    interval = f" [{', '.join(texts[1:])}]" if texts[1:] else ""
    return ("× " * ratio + texts[0] + interval).replace("-", "−")


def digits(effect: Effect) -> int:
    """Digits after the point, of which two at least are of the interval; of the value, where there is none."""
    width = abs(effect.value) if math.isnan(effect.low) else effect.high - effect.low
    return 3 if width >= 5e-3 or width < 5e-6 else 4 if width >= 5e-4 else 5


def effects(
    frame: pd.DataFrame,
    factors: Sequence[str] | None = None,
    outcome: str | None = None,
    *,
    against: str | None = None,
    ratio: bool = False,
) -> pd.DataFrame:
    """Compare every level of every factor but the seed with the factor's first: what the report shows, as figures.

    Args:
        frame: what `runs` returns; only finished runs count. Or any frame with a line for each run, the factors and the
            outcome.
        factors: all settings that vary, the seed among them. By default what `varied` finds, with each arm at its best
            learning rate if several were tried.
        outcome: a column of the frame, such as `validation_loss` (nats per token) or `tokens_per_second`. By default
            the loss, or `validation_bits_per_byte` where the runs read other tokens.
        against: the level to compare with, in factors that have it, as text.
        ratio: for positive outcomes, such as speed: the effect is a factor by which the outcome changes, the geometric
            mean, instead of a difference in the outcome's unit.

    Returns:
        The columns of `EFFECT_FIGURES`: `effect` with its 95 % interval over seeds from `low` to `high` and its p, all
        NaN for a single seed; the number of `seeds` and of `cells`, other settings alike; `left_out` runs without a
        partner; and the `verdict`: significant takes five seeds and p < 0.01. No line, and a `MissingResultsWarning`,
        if no two runs differ in one thing alone.

    Raises:
        ConfigError: the frame lacks the outcome or a factor.
    """
    finished = frame[frame["state"] == "finished"] if "state" in frame else frame
    outcome = outcome or outcome_of(finished)
    if factors is None:
        finished, factors = at_best_rate(finished, varied(finished))
    if lacks := [key for key in (outcome, *factors) if key not in finished]:
        raise ConfigError(f"the frame has no column {', '.join(lacks)}: give one of {', '.join(map(str, finished))}")
    lines = []
    for each in level_effects(finished, factors, outcome, against=against, ratio=ratio):
        ends = (each.effect.value, each.effect.low, each.effect.high)
        value, low, high = map(math.exp, ends) if ratio else ends
        evidence = (each.effect.n_seeds, each.effect.n_cells, each.left_out, each.effect.verdict)
        lines.append((each.factor, each.level, each.against, outcome, value, low, high, each.effect.p, *evidence))
    if not lines:
        advice = "sweep over a setting and the seed, such as python train.py -m seed=0,1,2 model.residual=A,B"
        said = f"no two of {len(finished)} finished runs differ in one setting alone: {advice}"
        warnings.warn(said, MissingResultsWarning, stacklevel=2)
    return pd.DataFrame(lines, columns=list(EFFECT_FIGURES))


def level_effects(
    frame: pd.DataFrame,
    factors: Sequence[str],
    outcome: str | None = None,
    *,
    against: str | None = None,
    ratio: bool = False,
) -> list[LevelEffect]:
    """Compare every level of every factor but the seed with one of the factor's; levels without a pair are left out.

    A pair are two runs that differ in nothing else. Pairs are averaged over cells, then over seeds. Runs that differ in
    nothing at all, as one that was repeated elsewhere, count as one, with their mean.

    Args:
        frame: what `frames.runs` returns, or any with a line for each run, the factors and the outcome.
        factors: all settings that vary, the seed among them.
        outcome: a column; by default the one that the runs can be compared by.
        against: the level to compare with, in factors that have it; else the first.
        ratio: for positive outcomes, such as speed: geometric means.
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
            except ValueError:  # no pair, or the logarithm of a speed that was not recorded
                continue
            left_out = sum(map(len, [*before.values(), *after.values()])) - 2 * effect.n_seeds * effect.n_cells
            results.append(LevelEffect(factor, level, reference, outcome, effect, ratio, left_out))
    return results


def reference_of(levels: Sequence[Any], against: str | None) -> Any:
    """The level that others are compared with: the one of this name, else the first; None if there is no level."""
    return next((each for each in levels if str(each) == against), next(iter(levels), None))


def effect_table(level_effects: Sequence[LevelEffect]) -> pd.DataFrame:
    """Make a line for each effect."""
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
    """The cells of a table that say what an effect rests on."""
    p = "" if math.isnan(effect.p) else f"{effect.p:.2g}"
    return {"p": p, "seeds": effect.n_seeds, "cells": effect.n_cells}


def tokens_to(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """Tokens, or hours if the curve has hours, after which a loss was first reached; NaN if it never was.

    Between two validations the loss is a line over the logarithm.
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

"""A sentence on the best level of a factor, with its lead over the next."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from gptstar.evaluation.statistics.effects import Effect
from gptstar.plots.labels import level_texts
from gptstar.results.arms import CONTEXT, OUTCOME, RATE, without_seed
from gptstar.results.extrapolation import LOSS
from gptstar.results.factors import digits, effect_text, level_effects
from gptstar.results.frames import EXPERIMENT
from gptstar.results.tried import Tried

NATS = "nats per token"
UNITS = {OUTCOME: f" {NATS}", LOSS: f" {NATS}"}
"""The unit of an outcome after its figure; the name of any other outcome states the unit."""
PLURALS = {RATE: "learning rates", CONTEXT: "training contexts", EXPERIMENT: "experiments"}


def best_level(runs: pd.DataFrame, factor: str, factors: Sequence[str], outcome: str, how: str = "") -> str:
    """Return a sentence without its stop on the level with the lowest outcome; empty if no runs can be paired.

    Args:
        factors: all settings that vary between the runs, including the seed.
        how: what all levels share, such as `all reading 512 tokens`.
    """
    tried = Tried.of(runs, factor, factors, outcome)
    if len(tried.values) < 2:
        return ""
    best, means = tried.best, tried.values["mean"]
    against_best = {
        each.level: each.effect
        for each in level_effects(runs, factors, outcome, against=str(best))
        if each.factor == factor
    }
    others = [*tried.complete.index.drop(best), *means.drop(tried.complete.index).sort_values().index]
    following = next((level for level in others if level in against_best), None)
    if following is None:
        return ""
    change = against_best[following]
    change = replace(change, value=-change.value, low=-change.high, high=-change.low)
    names = dict(zip(means.index, level_texts(list(means.index)), strict=True))
    cells = [each for each in without_seed(factors) if each != factor]
    averaged = f", averaged over {' and '.join(cells)}" if cells else ""
    n_complete = len(tried.complete)
    claim = f"has the lowest {words(outcome)}" + (f" of the {n_complete} with all runs" * (n_complete < len(means)))
    if n_complete == 1:
        claim = f"alone has all runs and this {words(outcome)}"
    next_one = ("the next, " if following == others[0] and n_complete > 1 else "") + names[following]
    return (
        f"Of {len(means)} {PLURALS.get(factor, f'values of {factor}')},{f' {how},' if how else ''} {names[best]} "
        f"{claim}: {means[best]:.{digits(change)}f}{UNITS.get(outcome, '')}, {effect_text(change)} against "
        f"{next_one}{averaged} ({certainty(change)})"
    )


def certainty(effect: Effect) -> str:
    """Return what the interval of an effect is over, its p, and whether it is significant."""
    if effect.n_seeds < 2:
        return "one seed" if math.isnan(effect.low) else "one seed; 95 % interval over the text"
    p = f"p = {effect.p:.2g}" if effect.p >= 1e-4 else "p < 0.0001"
    return f"95 % interval over {effect.n_seeds} seeds, {p}; {effect.verdict}"


def words(outcome: str) -> str:
    """Return the name of an outcome in words."""
    return outcome.replace("_", " ")

"""The plots of sets of runs, from their frames: the same in a report and in a notebook.

`runs`, `curves` and `lengths` are the frames of these names, and `factors` is what `varied` finds in `runs`. Each
function returns None if there is nothing to draw.
"""

import math
from collections.abc import Sequence

import pandas as pd

from gptstar.plots.budgets import BudgetLine, draw_budgets
from gptstar.plots.effects import EffectPoint, draw_effects
from gptstar.plots.factor import FactorLine, draw_factor
from gptstar.plots.lengths import LengthLine, draw_lengths
from gptstar.plots.lines import Point
from gptstar.plots.loss import LossCurve, draw_losses
from gptstar.plots.speed import Speeds, draw_speeds
from gptstar.plots.style import Figure
from gptstar.results.arms import OUTCOME, SEED, arms_of, measured, name_of, names_of, outcome_of, without_seed
from gptstar.results.budgets import Recipe
from gptstar.results.extrapolation import changes, reading_keys, readings
from gptstar.results.factors import LevelEffect
from gptstar.results.tried import Tried, values_tried


def loss_figure(runs: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str]) -> Figure | None:
    """Draw training and validation loss against tokens: the mean of each arm, and a band from best to worst seed."""
    if runs.empty or curves.empty:
        return None
    arms = without_seed(factors)
    merged = curves.merge(runs[["run", *(["began"] if arms else []), *arms]], on="run")
    lines = [
        LossCurve(name, _over_seeds(rows, "train/loss"), _over_seeds(rows, "validation/loss"))
        for name, rows in arms_of(merged, arms)
    ]
    return draw_losses(lines, names_of(arms))


def _over_seeds(rows: pd.DataFrame, metric: str) -> list[Point]:
    by_tokens = rows[rows["metric"] == metric].groupby("tokens")["value"].agg(["mean", "min", "max"])
    return [Point(*each) for each in by_tokens.itertuples()]


def factor_figure(finished: pd.DataFrame, factor: str, factors: Sequence[str]) -> Figure | None:
    """Draw the loss, or bits per byte where tokens differ, against a numeric factor, as `values_tried` finds it.

    There is a line for each arm, and its best value and the grid's edge are marked.
    """
    found = values_tried(finished, factor, factors)
    lines = [FactorLine(tried.arm, _points(tried), tried.best, tried.is_at_edge) for tried in found]
    return draw_factor(lines, names_of([factor]), f"{_with_unit(outcome_of(finished))}\nbars: lowest to highest seed")


def _points(tried: Tried) -> list[Point]:
    return [Point(row.Index, row.mean, row.min, row.max) for row in tried.values.itertuples()]


def lengths_figure(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Figure | None:
    """Draw loss against context length, and below it the change since the training context, with 95 % intervals.

    Bars of a loss go from the best seed to the worst. The interval of a change is over seeds; of one run, over the
    text.
    """
    if runs.empty or lengths.empty:
        return None
    keys = reading_keys(factors)
    lines = []
    for name, rows in arms_of(readings(runs, lengths, factors), ["trained_at", *keys]):
        trained_at = float(rows["trained_at"].iloc[0])
        arm = name.partition(", ")[2]
        if not arm:
            arm = f"trained at {name}" if lengths["trained_at"].nunique() > 1 else "all runs"
        losses = Tried.of(rows, "context_length", ["context_length", *({SEED} & {*factors})], "loss")
        changed = [
            Point(length, effect.value, effect.low, effect.high)
            for length, effect in changes(rows, factors, at="context_length").items()
        ]
        lines.append(LengthLine(arm, None if math.isnan(trained_at) else trained_at, _points(losses), changed))
    n_seeds = runs[SEED].nunique() if SEED in factors else 1
    change = f"95 % intervals over {'seeds' if n_seeds > 1 else 'the text'}"
    bars = f"bars above: lowest to highest seed; below: {change}" if n_seeds > 1 else f"bars below: {change}"
    return draw_lengths(lines, "Loss against the context read", legend=names_of(keys[:-1]), bars=bars)


def _with_unit(outcome: str) -> str:
    return outcome.replace("_", " ") + " (nats per token)" * (outcome == OUTCOME)


def effects_figure(changes: Sequence[LevelEffect]) -> Figure | None:
    """Draw effects with their 95 % intervals."""
    points = [
        EffectPoint(
            name_of(each.factor),
            each.level,
            each.against,
            *(each.effect.value, each.effect.low, each.effect.high),
            is_significant=each.effect.is_significant,
        )
        for each in changes
    ]
    return draw_effects(points, _with_unit(changes[0].outcome) if changes else "")


def budgets_figure(recipes: Sequence[Recipe]) -> Figure | None:
    """Draw the final loss of recipes against their budgets in tokens."""
    lines = []
    for recipe in recipes:
        means = recipe.runs.groupby("tokens")[OUTCOME].mean()
        runs = [Point(*each) for each in recipe.runs[["tokens", OUTCOME]].itertuples(index=False)]
        lines.append(BudgetLine(recipe.name, [Point(*each) for each in means.items()], runs))
    return draw_budgets(lines)


def speed_figure(runs: pd.DataFrame, factors: Sequence[str]) -> Figure | None:
    """Draw tokens per second of every run, by arm."""
    if runs.empty:
        return None
    recorded = measured(runs, "tokens_per_second")
    return draw_speeds(
        [Speeds(name, list(rows["tokens_per_second"])) for name, rows in arms_of(recorded, without_seed(factors))],
        names_of(without_seed(factors)),
    )

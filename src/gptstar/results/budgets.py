"""Recipes at several budgets: the tokens, or hours, until one reaches the final loss of another, paired by seed."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gptstar.evaluation.statistics.effects import Effect, blocked_effect
from gptstar.results.arms import OUTCOME, SEED, levels_of
from gptstar.results.factors import effect_text, tokens_to
from gptstar.results.frames import AT_EDGE, EXPERIMENT, is_setting

STEPS = "total_steps"
WITHIN, BEFORE, NEVER = "reached it between two points", "began below it", "never reached it"

Curve = Sequence[tuple[float, float]]
"""Tokens or hours, ascending, and the loss that was reached with each."""


@dataclass(frozen=True)
class Recipe:
    """Arms that differ in their budget alone: levels of a factor, the smallest budget first, and the finished runs."""

    arms: tuple[Any, ...]
    runs: pd.DataFrame

    @property
    def name(self) -> str:
        """Its arms, joined."""
        return ", ".join(dict.fromkeys(map(str, self.arms)))

    @property
    def budgets(self) -> list[int]:
        """Tokens of its runs, ascending."""
        return sorted(self.runs["tokens"].unique())

    def at(self, tokens: int) -> dict[Any, dict[str, Any]]:
        """The run of each seed at one budget."""
        return {run[SEED]: run for run in self.runs[self.runs["tokens"] == tokens].to_dict("records")}


def recipes(frame: pd.DataFrame, factor: str, factors: Sequence[str]) -> list[Recipe]:
    """Group the arms of a factor into recipes, in the order of its levels.

    Two arms are one recipe at two budgets if every setting that was not varied by itself is the same, or is a count of
    steps in proportion to `total_steps`, such as a warm-up of a tenth of the run.

    Args:
        frame: runs with a loss.
        factors: all that was varied: the factor, the seed, and perhaps the learning rate and `total_steps`.
    """
    varied_by_themselves = {each for each in factors if each != factor}
    keys = [key for key in frame if is_setting(key) and key not in {*varied_by_themselves, STEPS, EXPERIMENT, SEED}]
    groups: list[tuple[Mapping[str, Any], list[pd.DataFrame]]] = []
    for level in levels_of(frame, factor):
        for _, runs in frame[frame[factor] == level].groupby(STEPS):
            first = runs.iloc[0].to_dict()
            group = next((group for example, group in groups if _differ_in_budget(first, example, keys)), None)
            if group is None:
                groups.append((first, [runs]))
            else:
                group.append(runs)
    ordered = [pd.concat(group).sort_values("tokens", kind="stable") for _, group in groups]
    return [Recipe(tuple(runs[factor].drop_duplicates()), runs) for runs in ordered]


def _differ_in_budget(one: Mapping[str, Any], two: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether two runs differ in nothing but counts that are the same share of `total_steps`, to a whole step."""
    total = one[STEPS], two[STEPS]
    for key in (key for key in keys if one[key] != two[key]):
        steps = one[key], two[key]
        counts_steps = key.endswith(("steps", "_until")) and all(isinstance(each, int | float) for each in steps)
        if not (counts_steps and abs(steps[0] * total[1] - steps[1] * total[0]) <= (total[0] + total[1]) / 2):
            return False
    return True


@dataclass(frozen=True)
class Reached:
    """At what share of a reference's cost its final loss was reached.

    Attributes:
        share: the effect on the logarithm of that share over seeds; None unless every seed's is known.
        seeds: how many seeds reached the loss within their curves, before, or never.
    """

    share: Effect | None
    seeds: Counter[str]

    @property
    def text(self) -> str:
        """The share with its interval; if some seed has only a bound, how many seeds have none."""
        if self.share is not None:
            return effect_text(self.share, ratio=True)
        total = self.seeds.total()
        bounds = (f"{self.seeds[where]} of {total} {where}" for where in (BEFORE, NEVER) if self.seeds[where])
        return ", ".join(bounds)

    @property
    def verdict(self) -> str:
        """The verdict on the share; empty if it is not known."""
        return self.share.verdict if self.share is not None else ""


def reached(curves: Mapping[Any, Curve], references: Mapping[Any, tuple[float, float]]) -> Reached:
    """Compare, seed by seed, where a curve reaches the reference's loss with what the reference took.

    `references` holds the cost and final loss of each seed; seeds without a curve are left out.
    """
    shares: dict[Any, float] = {}
    seeds = Counter({WITHIN: 0, BEFORE: 0, NEVER: 0})
    for seed in (seed for seed in references if seed in curves):
        cost, loss = references[seed]
        at = tokens_to(curves[seed], loss)
        if math.isnan(at):
            seeds[NEVER] += 1
        elif curves[seed][0][1] <= loss:
            seeds[BEFORE] += 1
        else:
            seeds[WITHIN] += 1
            shares[seed] = math.log(at / cost)
    all_known = bool(shares) and len(shares) == seeds.total()
    effect = blocked_effect({seed: {"": share} for seed, share in shares.items()}) if all_known else None
    return Reached(effect, seeds)


@dataclass(frozen=True)
class Cost:
    """What a recipe needs for the final loss of another."""

    recipe: Recipe
    tokens: Reached
    hours: Reached


def costs(candidates: Sequence[Recipe], reference: Recipe, curves: pd.DataFrame) -> list[Cost]:
    """Find the tokens and hours after which every recipe but the reference reaches the reference's final loss.

    A recipe's curve is its final loss at each of its budgets, for the seeds that ran them all. A recipe with one budget
    has its validations instead, and hours in proportion to tokens. The reference is taken at its largest budget. Runs
    without a recorded speed have no hours.
    """
    ends = reference.at(reference.budgets[-1])

    def compare(recipe: Recipe, measure: str) -> Reached:
        final = {seed: (run[measure], run[OUTCOME]) for seed, run in ends.items() if run[measure] > 0}
        by_seed = _curves(recipe, curves, measure)
        found = reached({seed: curve for seed, curve in by_seed.items() if all(cost > 0 for cost, _ in curve)}, final)
        is_decided = not any(each.runs[AT_EDGE].any() for each in (recipe, reference) if AT_EDGE in each.runs)
        return replace(found, share=found.share and replace(found.share, is_decided=is_decided))

    return [Cost(each, compare(each, "tokens"), compare(each, "hours")) for each in candidates if each is not reference]


def _curves(recipe: Recipe, curves: pd.DataFrame, measure: str) -> dict[Any, Curve]:
    """Find the cost and loss of a recipe at its points, by seed."""
    by_budget = [recipe.at(tokens) for tokens in recipe.budgets]
    seeds = [seed for seed in by_budget[0] if all(seed in runs for runs in by_budget)]
    if len(by_budget) > 1:
        return {seed: [(runs[seed][measure], runs[seed][OUTCOME]) for runs in by_budget] for seed in seeds}
    validated = curves[curves["metric"] == "validation/loss"]
    by_seed: dict[Any, Curve] = {}
    for seed, run in by_budget[0].items():
        mine = validated[validated["run"] == run["run"]].sort_values("tokens")
        by_seed[seed] = list(zip(mine["tokens"] * (run[measure] / run["tokens"]), mine["value"], strict=True))
    return by_seed


def cost_table(lines: Sequence[Cost], *, has_hours: bool = True) -> pd.DataFrame:
    """Make a line for each recipe, with a verdict after each cost; hours are left out where they can't be compared."""
    return pd.DataFrame(
        [
            {
                "recipe": each.recipe.name,
                "million tokens": ", ".join(f"{tokens / 1e6:.3g}" for tokens in each.recipe.budgets),
                **{
                    key: text
                    for measure, found in (("tokens", each.tokens), ("hours", each.hours))
                    if measure == "tokens" or has_hours
                    for key, text in ((measure, found.text), (f"verdict on {measure}", found.verdict))
                },
                "seeds": each.tokens.seeds.total(),
            }
            for each in lines
        ]
    )

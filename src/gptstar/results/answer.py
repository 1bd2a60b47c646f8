"""The findings of a set of runs in sentences, and the limits of what they show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from gptstar.evaluation.statistics.effects import LEVEL, SEEDS, blocked_effect
from gptstar.plots.labels import level_texts
from gptstar.results.arms import (
    BITS,
    CONTEXT,
    OUTCOME,
    RATE,
    SEED,
    by_seed,
    measured,
    name_of,
    outcome_of,
    without_seed,
)
from gptstar.results.best_level import UNITS, best_level, words
from gptstar.results.budgets import STEPS
from gptstar.results.factors import effect_text
from gptstar.results.frames import AT_EDGE, varied
from gptstar.results.length_answer import findings_on_contexts, findings_on_lengths, limits_of_lengths
from gptstar.results.tried import Tried, at_best_rate, numeric_factors, values_tried

SHORT_STEPS = 200
"""The number of steps below which runs are called short."""


@dataclass(frozen=True)
class Answer:
    """The findings of a set of runs, and the limits of what they show, in sentences."""

    findings: tuple[str, ...]
    limits: tuple[str, ...]


def answer(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], tuning: pd.DataFrame | None = None
) -> Answer:
    """Say which level of each factor has the lowest loss, by how much, and whether the loss holds at longer contexts.

    Args:
        runs: the frame of runs, of which `counted` has left out those that chose a value; it may be empty.
        lengths: the frame of losses at context lengths; it may be empty.
        factors: the settings that vary, from `varied(runs)`.
        tuning: the runs that chose a value, by which it is known whether one beyond those tried may be better.
    """
    if runs.empty:
        return Answer(("There is no run.",), ())
    finished = measured(runs[runs["state"] == "finished"], OUTCOME)
    if finished.empty:
        return Answer((f"No run has finished with a validation loss: {states_text(runs)}.",), ())
    on_factors, on_lengths = _on_factors(finished, factors), findings_on_lengths(runs, lengths, factors)
    on_contexts = list(findings_on_contexts(runs, lengths, factors))
    # on the same targets, readings say more on training contexts than validations, each at its own context
    findings = [*on_lengths, *on_contexts, *on_factors] if on_contexts else [*on_factors, *on_lengths]
    limits = [*_limits(runs, finished, factors), *limits_of_lengths(lengths, factors)]
    if tuning is not None and len(chose := measured(tuning[tuning["state"] == "finished"], OUTCOME)):
        limits += _edges(chose, varied(chose))
    return Answer(tuple(findings), tuple(limits))


def states_text(runs: pd.DataFrame) -> str:
    """Return the number of runs in each state, in words."""
    return ", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items())


def _on_factors(finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    outcome = outcome_of(finished)
    finished = measured(finished, outcome)
    if finished.empty:
        yield f"No run has a {words(outcome)}."
        return
    if not without_seed(factors):
        mean = blocked_effect(by_seed(finished, factors, outcome))
        over = f" (95 % interval over {mean.n_seeds} seeds)" if mean.n_seeds > 1 else ""
        yield f"The {words(outcome)} is {effect_text(mean, sign='')}{UNITS.get(outcome, '')}{over}."
        return
    tuned, left = at_best_rate(finished, factors)
    at_best = ", each arm at its best learning rate" if AT_EDGE in tuned else ""
    own = {CONTEXT: "each validated at its own"}
    on_each = (best_level(tuned, factor, left, outcome, own.get(factor, "")) for factor in without_seed(left))
    sentences = list(filter(None, on_each))
    yield from (f"{each}{at_best}." for each in sentences)
    if not sentences:
        best = finished.loc[finished[outcome].idxmin()]
        settings = ", ".join(f"{factor} {level_texts([best[factor]])[0]}" for factor in factors)
        figure = f"{best[outcome]:.3f}{UNITS.get(outcome, '')}"
        yield f"The lowest {words(outcome)} is {figure}, of the run {best['run']} ({settings})."
        if len(finished) > 1:
            yield "No two finished runs differ in a single setting, so the effect of a setting is not known."


def _limits(runs: pd.DataFrame, finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    if len(finished) < len(runs):
        left_out = runs.drop(finished.index)
        yield f"{len(left_out)} of {len(runs)} runs are left out: {_why_left_out(left_out)}."
    n_seeds = finished[SEED].nunique() if SEED in factors else 1
    arms = without_seed(factors)
    if n_seeds == 1:
        yield "There is one seed, so the variation between seeds is unknown, and no interval can be given."
    elif n_seeds < SEEDS and arms:
        yield (
            f"There are {n_seeds} seeds, so every effect is preliminary: a significant one needs {SEEDS} seeds and "
            f"p < {LEVEL}."
        )
    if arms and finished.groupby(arms, dropna=False).size().nunique() > 1:
        yield "Some arms have fewer runs than others: each comparison uses the seeds that its arms share."
    steps = int(finished["step"].min())
    if steps < SHORT_STEPS:
        yield (
            f"The runs are short ({steps:,} steps, {int(finished['tokens'].min()):,} tokens): the order of the arms "
            "may change with more steps."
            if arms
            else f"The run is short: {steps:,} steps, {int(finished['tokens'].min()):,} tokens."
        )
    yield from _edges(finished, factors)
    yield from _unlike(finished, arms)


def _edges(finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    """Say of each value that is the best, and the lowest or highest tried, that one beyond it may be better."""
    for factor in numeric_factors(finished, factors):
        if factor == STEPS:  # chosen by budget, not tuned
            continue
        for tried in values_tried(finished, factor, factors):
            if tried.is_at_edge:
                yield _edge_text(factor, tried)


def _edge_text(factor: str, tried: Tried) -> str:
    values = list(tried.values.index)
    text = level_texts(values)[values.index(tried.best)]
    end, side = ("highest", "higher") if tried.best == max(values) else ("lowest", "lower")
    arm = " and ".join(f"{name_of(str(key))} {level_texts([level])[0]}" for key, level in tried.levels.items())
    of_arm = f" for {arm}" if arm else ""
    name = name_of(factor)
    return f"The best {name}{of_arm}, {text}, is the {end} of the {len(values)} tried: a {side} one may be better."


def _why_left_out(runs: pd.DataFrame) -> str:
    unvalidated = runs[runs["state"] == "finished"]
    others = runs.drop(unvalidated.index)
    parts = [states_text(others)] if len(others) else []
    if len(unvalidated):
        parts.append(f"{len(unvalidated)} finished without a validation loss that is a number")
    return ", ".join(parts)


def _unlike(finished: pd.DataFrame, arms: Sequence[str]) -> Iterator[str]:
    """Yield sentences on further differences between arms that affect their comparison."""
    if outcome_of(finished) == BITS:
        yield "The runs have different tokens, so losses per token aren't comparable: these are bits per byte."
    if CONTEXT in arms:
        yield (
            "Each run is validated at its own training context, so a longer one has the advantage of more context in "
            "the validation, too."
        )
    others = [each for each in arms if each not in (RATE, CONTEXT)]
    was_tuned = AT_EDGE in finished
    if others and RATE not in arms and not was_tuned and RATE in finished and finished[RATE].nunique() == 1:
        rate = level_texts([float(finished[RATE].iloc[0])])[0]
        yield f"Only one learning rate was tried, {rate}: some arms may be better at another."

"""The findings of a set of runs in sentences, and the limits of what they show."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from gptstar.evaluation.statistics.effects import LEVEL, SEEDS, Effect, blocked_effect
from gptstar.plots.labels import level_texts
from gptstar.results.arms import BITS, OUTCOME, RATE, SEED, arms_of, by_seed, measured, outcome_of, without_seed
from gptstar.results.budgets import STEPS
from gptstar.results.extrapolation import CONTEXT, changes, reading_keys, readings
from gptstar.results.factors import digits, effect_text, level_effects
from gptstar.results.frames import AT_EDGE, EXPERIMENT, varied
from gptstar.results.tried import Tried, at_best_rate, numeric_factors, values_tried

SHORT_STEPS = 200
"""The number of steps below which runs are called short."""
PLURALS = {RATE: "learning rates", CONTEXT: "training contexts", EXPERIMENT: "experiments"}


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
    findings = [*_on_factors(finished, factors), *findings_on_lengths(runs, lengths, factors)]
    limits = [*_limits(runs, finished, factors)]
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
        yield f"No run has a {_words(outcome)}."
        return
    if not without_seed(factors):
        mean = blocked_effect(by_seed(finished, factors, outcome))
        over = f" (95 % interval over {mean.n_seeds} seeds)" if mean.n_seeds > 1 else ""
        yield f"The {_words(outcome)} is {effect_text(mean, sign='')}{over}."
        return
    tuned, left = at_best_rate(finished, factors)
    at_best = ", each arm at its best learning rate" if AT_EDGE in tuned else ""
    sentences = list(filter(None, (_on_factor(tuned, factor, left, outcome) for factor in without_seed(left))))
    yield from (f"{each}{at_best}." for each in sentences)
    if not sentences:
        best = finished.loc[finished[outcome].idxmin()]
        settings = ", ".join(f"{factor} {level_texts([best[factor]])[0]}" for factor in factors)
        yield f"The lowest {_words(outcome)} is {best[outcome]:.3f}, of the run {best['run']} ({settings})."
        if len(finished) > 1:
            yield "No two finished runs differ in a single setting, so the effect of a setting is not known."


def _on_factor(runs: pd.DataFrame, factor: str, factors: Sequence[str], outcome: str) -> str:
    """Return a sentence on the best level of a factor and its lead over the next; empty if runs can't be paired."""
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
    claim = f"has the lowest {_words(outcome)}" + (f" of the {n_complete} with all runs" * (n_complete < len(means)))
    if n_complete == 1:
        claim = f"alone has all runs and this {_words(outcome)}"
    next_one = ("the next, " if following == others[0] and n_complete > 1 else "") + names[following]
    return (
        f"Of {len(means)} {PLURALS.get(factor, f'values of {factor}')}, {names[best]} {claim}: "
        f"{means[best]:.{digits(change)}f}, {effect_text(change)} against {next_one}{averaged} ({_verdict(change)})"
    )


def _verdict(effect: Effect) -> str:
    if effect.n_seeds < 2:
        return "one seed" if math.isnan(effect.low) else "one seed; 95 % interval over the text"
    p = f"p = {effect.p:.2g}" if effect.p >= 1e-4 else "p < 0.0001"
    return f"95 % interval over {effect.n_seeds} seeds, {p}; {effect.verdict}"


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


def findings_on_lengths(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each arm on the change of its loss from the training context to the longest context."""
    for study, of_study in lengths.groupby("study", sort=False) if not lengths.empty else ():
        which = f" ({study})" if lengths["study"].nunique() > 1 else ""
        for arm, rows in arms_of(readings(runs, of_study, factors), reading_keys(factors)):
            by_multiple = changes(rows, factors)
            longest, model = max(by_multiple, default=0), "the model" if arm == "all runs" else arm
            if longest > 1:
                yield (
                    f"Read at {longest:g} × its training context{which}, the loss of {model} changes by "
                    f"{effect_text(by_multiple[longest])} nats per token ({_verdict(by_multiple[longest])})."
                )


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
        if factor in (CONTEXT, STEPS):  # these are chosen by purpose and budget, not tuned
            continue
        for tried in values_tried(finished, factor, factors):
            if tried.is_at_edge:
                yield _edge_text(factor, tried)


def _edge_text(factor: str, tried: Tried) -> str:
    values = list(tried.values.index)
    text = level_texts(values)[values.index(tried.best)]
    end, side = ("highest", "higher") if tried.best == max(values) else ("lowest", "lower")
    arm = " and ".join(f"{_name(str(key))} {level_texts([level])[0]}" for key, level in tried.levels.items())
    of_arm = f" for {arm}" if arm else ""
    name = _name(factor)
    return f"The best {name}{of_arm}, {text}, is the {end} of the {len(values)} tried: a {side} one may be better."


def _name(factor: str) -> str:
    return factor.rpartition(".")[2].replace("_", " ")


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

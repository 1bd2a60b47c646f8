"""What was asked of a set of runs and what came out, in sentences; and what they can't decide, and why."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from gptstar.evaluation.statistics.effects import LEVEL, SEEDS, Effect, blocked_effect
from gptstar.plots.labels import level_texts
from gptstar.results.arms import without_seed
from gptstar.results.extrapolation import CONTEXT, against_training
from gptstar.results.factors import OUTCOME, RATE, SEED, at_best_rate, level_effects, levels_of
from gptstar.results.frames import EXPERIMENT
from gptstar.results.tried import numeric_factors, values_tried

BITS = "validation_bits_per_byte"
SHORT_STEPS = 200
"""Runs of fewer steps are called short."""
PLURALS = {RATE: "learning rates", CONTEXT: "training contexts", EXPERIMENT: "experiments"}


@dataclass(frozen=True)
class Answer:
    """Sentences on what came out, and on what can't be concluded."""

    findings: tuple[str, ...]
    limits: tuple[str, ...]


def answer(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Answer:
    """Say which level of each factor has the lowest loss, by how much, and whether the loss holds at longer contexts.

    Args:
        runs, lengths: the frames of these names; either may be empty.
        factors: what `varied` finds in `runs`.
    """
    if runs.empty:
        return Answer(("There is no run.",), ())
    finished = runs[(runs["state"] == "finished") & runs[OUTCOME].notna()]
    if finished.empty:
        return Answer((f"No run has finished with a validation loss: {states_text(runs)}.",), ())
    findings = [*_on_factors(finished, factors), *findings_on_lengths(runs, lengths, factors)]
    return Answer(tuple(findings), tuple(_limits(runs, finished, factors)))


def states_text(runs: pd.DataFrame) -> str:
    """How many runs are in which state."""
    return ", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items())


def outcome_of(finished: pd.DataFrame) -> str:
    """The column that the runs can be compared by: bits per byte where they read other tokens."""
    keys = ("model.n_vocab", "data.fingerprint")
    return BITS if any(finished[key].nunique() > 1 for key in keys if key in finished) else OUTCOME


def _on_factors(finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    outcome = outcome_of(finished)
    arms = without_seed(factors)
    if not arms:
        seeds = f" over {len(finished)} seeds" if len(finished) > 1 else ""
        yield f"The {_words(outcome)}{seeds} is {_mean_text(finished, outcome, factors)}."
        return
    tuned, left = at_best_rate(finished, factors)
    for factor in without_seed(left):
        sentence = _on_factor(tuned, factor, left, outcome)
        if sentence:
            at_best = ", each arm at its best learning rate" if len(left) < len(factors) else ""
            yield f"{sentence}{at_best}."


def _on_factor(runs: pd.DataFrame, factor: str, factors: Sequence[str], outcome: str) -> str:
    """The level with the lowest outcome, with its interval, and by how much it is below the next."""
    levels = levels_of(runs, factor)
    if len(levels) < 2:
        return ""
    below = {levels[0]: 0.0} | {
        each.level: each.effect.value for each in level_effects(runs, factors, outcome) if each.factor == factor
    }
    if len(below) < 2:
        return ""
    best, following, *_ = sorted(below, key=lambda level: below[level])
    change = next(
        each
        for each in level_effects(runs, factors, outcome, against=str(following))
        if (each.factor, each.level) == (factor, best)
    )
    names = dict(zip(levels, level_texts(levels), strict=True))
    others = [each for each in without_seed(factors) if each != factor]
    averaged = f", averaged over {' and '.join(others)}" if others else ""
    mean = _mean_text(runs[runs[factor] == best], outcome, factors)
    return (
        f"Of {len(below)} {PLURALS.get(factor, f'values of {factor}')}, {names[best]} has the lowest "
        f"{_words(outcome)}: {mean}, {difference_text(change.effect)} against the next, {names[following]}{averaged} "
        f"({_verdict(change.effect)})"
    )


def difference_text(effect: Effect) -> str:
    """A difference with its 95 % interval in brackets."""
    value, low, high = (f"{each:+.{_digits(effect)}f}" for each in (effect.value, effect.low, effect.high))
    return (value if math.isnan(effect.low) else f"{value} [{low}, {high}]").replace("-", "−")


def _digits(effect: Effect) -> int:
    """Digits after the point: more where the interval would vanish in three."""
    return 5 if effect.high - effect.low < 5e-4 else 4 if effect.high - effect.low < 5e-3 else 3


def _verdict(effect: Effect) -> str:
    if effect.n_seeds < 2:
        return "one seed"
    p = f"p = {effect.p:.2g}" if effect.p >= 1e-4 else "p < 0.0001"
    return f"{effect.verdict}, {effect.n_seeds} seeds, {p}"


def _mean_text(runs: pd.DataFrame, outcome: str, factors: Sequence[str]) -> str:
    """The mean of runs with its 95 % interval over seeds."""
    by_seed: dict[Hashable, dict[Hashable, float]] = {}
    for run in runs[runs[outcome].notna()].to_dict("records"):
        cell = tuple(run[each] for each in without_seed(factors))
        by_seed.setdefault(run[SEED] if SEED in factors else 0, {})[cell] = run[outcome]
    mean = blocked_effect(by_seed)
    if math.isnan(mean.low):
        return f"{mean.value:.3f}"
    value, low, high = (f"{each:.{_digits(mean)}f}" for each in (mean.value, mean.low, mean.high))
    return f"{value} (95 % interval {low} to {high})"


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


def findings_on_lengths(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    """For each arm, the change of the loss at the longest context since its training context."""
    for study, of_study in lengths.groupby("study", sort=False) if not lengths.empty else ():
        table = against_training(runs, of_study, factors)
        if table.empty:
            continue
        which = f" ({study})" if lengths["study"].nunique() > 1 else ""
        keys = list(table.columns[: table.columns.get_loc("context")])
        for levels, rows in table.groupby(keys, sort=False, dropna=False):
            longest = rows.iloc[-1]
            named = zip(keys, levels, strict=True)
            arm = ", ".join(str(level) for key, level in named if (key, level) != ("rotary_scaling", "none"))
            interval = f" [{longest['95 % interval'].replace(' to ', ', ')}]" if longest["95 % interval"] else ""
            yield (
                f"Read at {longest['context']} its training context{which}, the loss of {arm or 'the model'} changes "
                f"by {longest['change']}{interval} nats per token ({longest['']})."
            ).replace("-0", "−0")


def _limits(runs: pd.DataFrame, finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[str]:
    if len(finished) < len(runs):
        left_out = runs.drop(finished.index)
        yield f"{len(left_out)} of {len(runs)} runs are left out: {_why_left_out(left_out)}."
    n_seeds = finished[SEED].nunique() if SEED in factors else 1
    arms = without_seed(factors)
    if n_seeds == 1:
        yield "There is one seed, so nothing is known of how much another would differ, and no interval can be given."
    elif n_seeds < SEEDS and arms:
        yield (
            f"There are {n_seeds} seeds, so every effect is preliminary: it takes {SEEDS} seeds and p < {LEVEL} to be "
            "called significant."
        )
    if arms and finished.groupby(arms, dropna=False).size().nunique() > 1:
        yield "Some arms have fewer runs than others: each comparison rests on the seeds that its arms share."
    steps = int(finished["step"].min())
    if steps < SHORT_STEPS:
        yield (
            f"The runs are short ({steps:,} steps, {int(finished['tokens'].min()):,} tokens): the order of the arms "
            "may be another after more steps."
            if arms
            else f"The run is short: {steps:,} steps, {int(finished['tokens'].min()):,} tokens."
        )
    for factor in numeric_factors(finished, factors):
        if factor == CONTEXT:
            continue
        for tried in values_tried(finished, factor, factors, outcome_of(finished)):
            if tried.is_at_edge:
                yield _edge_text(factor, tried.best, list(tried.values.index), tried.arm)
    yield from _unlike(finished, arms)


def _edge_text(factor: str, best: float, values: Sequence[float], arm: str) -> str:
    text = level_texts(list(values))[list(values).index(best)]
    end, side = ("highest", "higher") if best == max(values) else ("lowest", "lower")
    whose = "" if arm == "all runs" else f" for {arm}"
    name = factor.rpartition(".")[2].replace("_", " ")
    return f"The best {name}{whose}, {text}, is the {end} of the {len(values)} tried: a {side} one may be better."


def _why_left_out(runs: pd.DataFrame) -> str:
    unvalidated = runs[runs["state"] == "finished"]
    others = runs.drop(unvalidated.index)
    parts = [states_text(others)] if len(others) else []
    if len(unvalidated):
        parts.append(f"{len(unvalidated)} finished without a validation loss that is a number")
    return ", ".join(parts)


def _unlike(finished: pd.DataFrame, arms: Sequence[str]) -> Iterator[str]:
    """What else differs between arms, so that their losses don't compare as they are."""
    if outcome_of(finished) == BITS:
        yield "The runs read other tokens, so losses per token can't be compared: these are bits per byte."
    if CONTEXT in arms:
        yield (
            "Each run is validated at its own context length: a difference between training contexts is partly one "
            "of how much context the validation gives."
        )
    others = [each for each in arms if each not in (RATE, CONTEXT)]
    if others and RATE not in arms and RATE in finished and finished[RATE].nunique() == 1:
        rate = level_texts([float(finished[RATE].iloc[0])])[0]
        yield f"Only one learning rate was tried, {rate}: an arm may gain from another."

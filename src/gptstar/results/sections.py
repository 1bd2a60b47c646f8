"""The contents of a report on a set of runs: tables and pictures under headings, in whatever form they are printed."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from gptstar.errors import ConfigError
from gptstar.evaluation.statistics.effects import LEVEL, SEEDS
from gptstar.results import frames
from gptstar.results.budgets import STEPS, cost_table, costs, recipes
from gptstar.results.extrapolation import CONTEXT, against_training, between_arms
from gptstar.results.factors import (
    OUTCOME,
    RATE,
    SEED,
    at_best_rate,
    effect_table,
    level_effects,
    level_text,
    levels_of,
    rates_tried,
    reference_of,
    tokens_to,
)
from gptstar.results.pictures import plot_budgets, plot_curves, plot_effects, plot_lengths
from gptstar.results.run import find_runs, readable
from gptstar.results.sources import MissingResultsWarning
from gptstar.training.settings import shown_keys

EXPLAINED = (
    "Intervals are of 95 %, by Student's t over seeds: pairs of runs that differ in this alone, averaged over all "
    f"other settings, are what varies. With {SEEDS} seeds and p < {LEVEL} an effect is significant, else preliminary."
)

TURNS = "Times can be compared where the arms took turns, `seed=` before the arms in the sweep, and nothing else ran."


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; each of text, table, picture and commands may be missing."""

    heading: str
    text: str = ""
    table: pd.DataFrame | None = None
    picture: Figure | None = None
    commands: tuple[str, ...] = ()


def sections(paths: Sequence[Path], against: str | None = None) -> Iterator[Section]:
    """Describe the runs in some folders, section by section; `against` is the level that others are compared with.

    Raises:
        ConfigError: there is no run; or no factor has the level.
    """
    readable(paths)  # or refuses them
    runs = frames.runs(*paths)
    with warnings.catch_warnings(action="ignore", category=MissingResultsWarning):
        lengths, tasks = frames.lengths(*paths), frames.tasks(*paths)
    factors = frames.varied(runs)
    levels = [str(level) for factor in factors if factor != SEED for level in levels_of(runs, factor)]
    if against is not None and against not in levels:
        raise ConfigError(f"--against {against}: no factor has this level; there are {', '.join(levels) or 'none'}")
    yield _overview(runs, factors)
    if unreadable := frames.damaged(*paths):
        yield Section("What can't be read", "\n\n".join(f"{line}." for line in unreadable))
    curves = frames.curves(*paths)
    if (picture := plot_curves(runs, curves, factors)) is not None:
        text = "Validation loss; the mean over seeds, and a band from the best to the worst."
        yield Section("Loss as it fell", text, _tokens_to(runs, curves, factors), picture)
    finished = runs[runs["state"] == "finished"]
    yield from _rates(finished, factors)
    yield from _effects(finished, factors, against)
    yield from _costs(finished, curves, factors, against)
    if speed := level_effects(finished, factors, "tokens_per_second", against=against, ratio=True):
        text = (
            "Ratios of tokens a second, without intervals: the runs came one after another, so what else the machine "
            "did meanwhile is in them, and more seeds don't take it out. For a claim: `benchmarks/run.py`, interleaved."
        )
        table = effect_table(speed).assign(effect=[f"× {math.exp(each.effect.value):.3f}" for each in speed])
        yield Section("Speed", text, table[["factor", "level", "against", "effect", "seeds", "cells"]])
    yield from _lengths(runs, lengths, factors, against)
    if not tasks.empty:
        scores = [
            f"{line['value']:.4f}" + ("" if pd.isna(line["low"]) else f" [{line['low']:.4f}, {line['high']:.4f}]")
            for line in tasks.to_dict("records")
        ]
        table = tasks.assign(score=scores)[["run", "checkpoint", "task", "metric", "subset", "score", "items"]]
        yield Section("Benchmarks", "With 95 % intervals over items.", table)
    columns = ["run", *factors, "state", "step", "tokens", "validation_loss", "tokens_per_second", "hours"]
    yield Section("All runs", table=runs[columns])
    yield _repeat(paths)


def _overview(runs: pd.DataFrame, factors: Sequence[str]) -> Section:
    states = ", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items())
    lines = [f"{len(runs)} runs: {states}; {runs['hours'].sum():.1f} hours of training."]
    if factors:
        lines.append(
            "Varied: "
            + "; ".join(f"{each} ({', '.join(map(level_text, levels_of(runs, each)))})" for each in factors)
            + "."
        )
    alike = [f"{key} {runs[key].iloc[0]}" for key in shown_keys() if key in runs and runs[key].nunique() == 1]
    if alike:
        lines.append("Alike in all: " + ", ".join(alike) + ".")
    return Section("What was run", "\n\n".join(lines))


def _rates(finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[Section]:
    tried = rates_tried(finished, factors)
    if tried.empty:
        return
    arms = [each for each in factors if each not in (RATE, SEED)]
    keys, tried = (arms, tried) if arms else (["arm"], tried.assign(arm="all"))
    table = tried.pivot_table("loss", keys, RATE, sort=False).sort_index(axis="columns")
    best = tried[tried["is_best"]].set_index(keys)
    table.columns = [f"{rate:g}" for rate in table.columns]
    table["best"] = [f"{rate:g}" for rate in best.loc[table.index, RATE]]
    table[""] = ["at the end of its rates" if edge else "" for edge in best.loc[table.index, "is_edge"]]
    text = "Validation loss, means over seeds."
    if best["is_edge"].any():
        text += (
            " Where the best is at the end of the rates tried, a rate beyond may be better, and how the arm compares "
            "with others is not decided."
        )
    yield Section("Learning rates", text, table.reset_index())


def _effects(finished: pd.DataFrame, factors: Sequence[str], against: str | None) -> Iterator[Section]:
    tuned, left = at_best_rate(finished, factors)
    outcome = "validation_bits_per_byte" if _other_tokens(finished) else OUTCOME
    changes = level_effects(tuned, left, outcome, against=against)
    if not changes:
        return
    text = [EXPLAINED]
    if outcome != OUTCOME:
        text.append("The runs read other tokens, so losses a token can't be compared: these are bits a byte.")
    if "data.context_length" in factors:
        text.append("Each run is validated at its own context length.")
    if len(left) < len(factors):
        text.append(
            "Each arm is at its best learning rate, as above. It was chosen by the same seeds, which favours an arm "
            "with more rates that are nearly as good, by up to half a standard error."
        )
    heading = f"Effects on {outcome.replace('_', ' ')}"
    yield Section(heading, " ".join(text), effect_table(changes), plot_effects(changes))
    if tuned["tokens"].nunique() > 1 and (hours := level_effects(tuned, left, "hours", against=against, ratio=True)):
        yield Section("Effects on hours of training", f"Ratios. {TURNS} {EXPLAINED}", effect_table(hours))


def _other_tokens(finished: pd.DataFrame) -> bool:
    return any(finished[key].nunique() > 1 for key in ("model.n_vocab", "data.fingerprint") if key in finished)


def _costs(
    finished: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str], against: str | None
) -> Iterator[Section]:
    """Where one factor varies: what each recipe needs for the final loss of the first."""
    tuned, left = at_best_rate(finished[finished[OUTCOME].notna()], factors)
    varied = [each for each in left if each not in (SEED, STEPS)]
    if len(varied) != 1 or _other_tokens(finished):
        return
    candidates = recipes(tuned, varied[0], factors)
    factor = varied[0]
    level = reference_of(levels_of(tuned, factor), against)
    reference = next((each for each in candidates if level in each.arms), None)
    if reference is None or len(candidates) < 2:
        return
    text = (
        f"What each recipe needs for the final loss of {factor}={level}, as a ratio to what that took: seed by seed, "
        "by a line over the logarithm between final losses at the budgets of the recipe, or, where it has one budget, "
        f"between its validations. {TURNS} Intervals are of 95 %, by Student's t over seeds."
    )
    table = cost_table(costs(candidates, reference, curves))
    yield Section(f"Tokens and hours to the loss of {factor}={level}", text, table, plot_budgets(candidates))


def _tokens_to(runs: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame | None:
    """Tokens until every arm, as the mean of its seeds, has reached the loss of the one that ended worst."""
    arms = [each for each in factors if each != SEED]
    validated = curves[curves["metric"] == "validation/loss"]
    finished = runs[(runs["state"] == "finished") & runs["validation_loss"].notna()]
    if not arms or finished.empty:
        return None
    grouped = finished.groupby(arms, sort=False, dropna=False)
    table = grouped.agg(
        **{
            "million tokens": ("tokens", lambda tokens: tokens.mean() / 1e6),
            "minutes": ("hours", lambda hours: 60 * hours.mean()),
            "± minutes": ("hours", lambda hours: 60 * hours.std()),
            "validation loss": (OUTCOME, "mean"),
            "± over seeds": (OUTCOME, "std"),
            "seeds": ("run", "size"),
        }
    )
    target = table["validation loss"].max()
    table[f"million tokens to {target:.3f}"] = [
        tokens_to(list(means.items()), target) / 1e6
        for _, lines in grouped
        for means in [validated[validated["run"].isin(lines["run"])].groupby("tokens")["value"].mean()]
    ]
    return table.reset_index()


def _lengths(
    runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], against: str | None
) -> Iterator[Section]:
    studies = list(lengths.groupby("study", sort=False))
    for study, of_study in studies:
        which = f" ({study})" if len(studies) > 1 else ""
        yield from _study(runs, of_study, factors, which)
        if _same_targets(of_study):
            tuned, left = at_best_rate(runs[runs["state"] == "finished"], factors)
            if not (table := between_arms(tuned, of_study, left, against)).empty:
                text = f"Loss at each multiple of the training context, on the same targets. {EXPLAINED}"
                yield Section(f"Arms at each length{which}", text, table)


def _same_targets(lengths: pd.DataFrame) -> bool:
    """Whether all runs scored the same targets, at every length or at each multiple."""
    study = lengths["study"].iloc[0]
    return "fixed_targets" in study and ("room" in study or lengths["trained_at"].nunique() == 1)


def _study(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], which: str) -> Iterator[Section]:
    arms = [each for each in factors if each not in (SEED, CONTEXT)]
    keys = [*arms, "rotary_scaling", "trained_at"]
    merged = lengths.merge(runs[["run", *arms, *([SEED] if SEED in runs else [])]], on="run")
    table = merged.groupby([*keys, "multiple"], sort=False, dropna=False)["loss"].mean().unstack("multiple")
    table.columns = [f"{multiple:g} ×" for multiple in table.columns]
    same = "The targets are the same for all runs. " if _same_targets(lengths) else "Targets differ between runs. "
    text = (
        f"Loss by the context read, as multiples of the training context; nats a token, means over seeds. {same}"
        "The shade ends where training did; bars go from the best seed to the worst."
    )
    yield Section(
        f"Beyond the training context{which}", text, table.reset_index(), plot_lengths(runs, lengths, factors)
    )
    against = against_training(runs, lengths, factors)
    if not against.empty:
        text = f"Loss at a multiple of the training context, less that at the training context itself. {EXPLAINED}"
        yield Section(f"Does it hold?{which}", text, against)


def _repeat(paths: Sequence[Path]) -> Section:
    runs = [run for run in find_runs(paths) if run.state != "damaged"]
    commits = sorted({str(run.about.get("commit")) for run in runs})
    data = sorted({str(run.about.get("data"))[:16] for run in runs})
    text = f"Code: {', '.join(commits)}. Data: {', '.join(data)}. What each run was started by:"
    return Section("To repeat it", text, commands=tuple(dict.fromkeys(run.about.get("command", "") for run in runs)))

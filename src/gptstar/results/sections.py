"""What a report says of a set of runs: tables and pictures under headings, whatever they are printed as."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from gptstar.evaluation.statistics.effects import LEVEL, SEEDS, blocked_effect
from gptstar.results import frames
from gptstar.results.effects import OUTCOME, RATE, SEED, LevelEffect, at_best_rate, effects, tokens_to
from gptstar.results.pictures import plot_curves, plot_effects, plot_lengths
from gptstar.results.run import find_runs

EXPLAINED = (
    "Intervals are of 95 %, by Student's t over seeds: pairs of runs that differ in this alone, averaged over all "
    f"other settings, are what varies. With {SEEDS} seeds and p < {LEVEL} a claim is shown; less is an indication."
)

TOLD = (
    *("model.n_layers", "model.d_model", "model.n_heads", "model.n_vocab", "data.context_length", "batch_tokens"),
    *("total_steps", "optimizer.learning_rate", "hardware.precision"),
)
"""Settings that a reader asks for even where they are alike in all runs."""


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; each of text, table, picture and commands may be missing."""

    heading: str
    text: str = ""
    table: pd.DataFrame | None = None
    picture: Figure | None = None
    commands: tuple[str, ...] = ()


def sections(paths: Sequence[Path]) -> Iterator[Section]:
    """What is to be said of the runs in some folders, in order.

    Raises:
        ConfigError: there is none.
    """
    runs = frames.runs(*paths)
    factors = frames.varied(runs)
    yield _overview(runs, factors)
    curves = frames.curves(*paths)
    if (picture := plot_curves(runs, curves, factors)) is not None:
        text = "Validation loss; the mean over seeds, and a band from the best to the worst."
        yield Section("Loss as it fell", text, _tokens_to(runs, curves, factors), picture)
    finished = runs[runs["state"] == "finished"]
    yield from _effects(finished, factors)
    if speed := effects(finished, factors, "tokens_per_second", ratio=True):
        text = (
            "Ratios of tokens a second, without intervals: the runs came one after another, so what else the machine "
            "did meanwhile is in them, and more seeds don't take it out. For a claim: `benchmarks/run.py`, interleaved."
        )
        columns = ["factor", "level", "against", "effect", "seeds", "cells"]
        yield Section("Speed", text, effect_table(speed, intervals=False)[columns])
    yield from _lengths(runs, frames.lengths(*paths), factors)
    tasks = frames.tasks(*paths)
    if not tasks.empty:
        yield Section("Benchmarks", "With 95 % intervals over items.", _scores(tasks))
    yield Section("All runs", table=_all_runs(runs, factors))
    yield _repeat(paths)


def _overview(runs: pd.DataFrame, factors: Sequence[str]) -> Section:
    states = ", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items())
    lines = [f"{len(runs)} runs: {states}; {runs['hours'].sum():.1f} hours of training."]
    if factors:
        lines.append("Varied: " + "; ".join(f"{each} ({_listed(runs[each])})" for each in factors) + ".")
    alike = [f"{key} {runs[key].iloc[0]}" for key in TOLD if key in runs and runs[key].nunique() == 1]
    if alike:
        lines.append("Alike in all: " + ", ".join(alike) + ".")
    return Section("What was run", "\n\n".join(lines))


def _effects(finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[Section]:
    tuned, left = at_best_rate(finished, factors)
    other_tokens = any(finished[key].nunique() > 1 for key in ("model.n_vocab", "data.fingerprint") if key in finished)
    outcome = "validation_bits_per_byte" if other_tokens else OUTCOME
    found = effects(tuned, left, outcome)
    if not found:
        return
    text = [EXPLAINED]
    if other_tokens:
        text.append("The runs read other tokens, so losses a token can't be compared: these are bits a byte.")
    if "data.context_length" in factors:
        text.append("Each run is validated at its own context length.")
    if len(left) < len(factors):
        text.append(
            f"Each arm is at its best learning rate: {_rates(tuned, left)}. It was chosen by the same seeds, which "
            "favours an arm with more rates that are nearly as good, by up to half a standard error."
        )
        tried, taken = finished[RATE], tuned[RATE]
        if taken.isin((tried.min(), tried.max())).any():
            text.append("Some are at the end of what was tried: a rate beyond may be better for them.")
    yield Section(f"Effects on {outcome.replace('_', ' ')}", " ".join(text), effect_table(found), plot_effects(found))


def _rates(tuned: pd.DataFrame, factors: Sequence[str]) -> str:
    arms = [each for each in factors if each != SEED]
    rates = tuned.groupby(arms, sort=False, dropna=False)[RATE].first()
    names = [", ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in rates.index]
    return "; ".join(f"{name}: {rate:g}" for name, rate in zip(names, rates, strict=True))


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
            "validation loss": (OUTCOME, "mean"),
            "± over seeds": (OUTCOME, "std"),
            "seeds": ("run", "size"),
        }
    )
    target = table["validation loss"].max()
    merged = validated.merge(finished[["run", *arms]], on="run")
    table[f"million tokens to {target:.3f}"] = [
        tokens_to(list(merged[merged["run"].isin(runs_of["run"])].groupby("tokens")["value"].mean().items()), target)
        / 1e6
        for _, runs_of in grouped
    ]
    return table.reset_index()


def _lengths(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Iterator[Section]:
    studies = list(lengths.groupby("study", sort=False))
    for study, of_study in studies:
        yield from _study(runs, of_study, factors, f" ({study})" if len(studies) > 1 else "")


def _study(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str], which: str) -> Iterator[Section]:
    arms = [each for each in factors if each not in (SEED, "data.context_length")]
    keys = [*arms, "rotary_scaling", "trained_at"]
    merged = lengths.merge(runs[["run", *arms, *([SEED] if SEED in runs else [])]], on="run")
    table = merged.groupby([*keys, "multiple"], sort=False, dropna=False)["loss"].mean().unstack("multiple")
    table.columns = [f"{multiple:g} ×" for multiple in table.columns]
    same = "fixed_targets" in lengths["study"].iloc[0] and "room" in lengths["study"].iloc[0]
    text = (
        "Loss by the context read, as multiples of the training context; nats a token, means over seeds. "
        + ("The targets are the same for all runs and lengths. " if same else "Targets differ between runs. ")
        + "The shade ends where training did; bars go from the best seed to the worst."
    )
    yield Section(
        f"Beyond the training context{which}", text, table.reset_index(), plot_lengths(runs, lengths, factors)
    )
    against = against_training(runs, lengths, factors)
    if not against.empty:
        text = f"Loss at a multiple of the training context, less that at the training context itself. {EXPLAINED}"
        yield Section(f"Does it hold?{which}", text, against)


def against_training(runs: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """For each arm and multiple the change against the training context: paired within runs, over cells and seeds.

    Args:
        lengths: of `lengths`.
    """
    arms = [each for each in factors if each not in (SEED, "data.context_length")]
    merged = lengths.merge(runs[["run", *arms, *([SEED] if SEED in runs else [])]], on="run")
    lines = []
    for name, group in merged.groupby([*arms, "rotary_scaling"], sort=False, dropna=False):
        lines += [dict(zip([*arms, "rotary_scaling"], name, strict=True)) | each for each in _changes(group)]
    return pd.DataFrame(lines)


def _changes(group: pd.DataFrame) -> Iterator[dict[str, object]]:
    at_training = group[group["multiple"] == 1].set_index("run")["loss"]
    for multiple in sorted(each for each in group["multiple"].unique() if each > 1):
        here = group[group["multiple"] == multiple]
        here = here.assign(change=here["loss"] - here["run"].map(at_training)).dropna(subset=["change"])
        if here.empty:
            continue
        by_seed: dict[Hashable, dict[Hashable, float]] = {}
        for line in here.to_dict("records"):
            by_seed.setdefault(line.get(SEED, 0), {})[line["trained_at"]] = line["change"]
        found = blocked_effect(by_seed)
        yield {
            "context": f"{multiple:g} ×",
            "change": f"{found.value:+.4f}",
            "95 % interval": "" if math.isnan(found.low) else f"{found.low:+.4f} to {found.high:+.4f}",
            "p": "" if math.isnan(found.p) else f"{found.p:.2g}",
            "seeds": found.n_seeds,
            "cells": found.n_cells,
            "": found.verdict,
        }


def effect_table(found: Sequence[LevelEffect], *, intervals: bool = True) -> pd.DataFrame:
    """A line for each effect."""
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


def _scores(tasks: pd.DataFrame) -> pd.DataFrame:
    figures = tasks.assign(
        score=[
            f"{line['value']:.4f}" + ("" if pd.isna(line["low"]) else f" [{line['low']:.4f}, {line['high']:.4f}]")
            for line in tasks.to_dict("records")
        ]
    )
    return figures[["run", "checkpoint", "task", "metric", "subset", "score", "items"]]


def _all_runs(runs: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    columns = ["run", *factors, "state", "step", "tokens", "validation_loss", "tokens_per_second", "hours"]
    return runs[columns]


def _repeat(paths: Sequence[Path]) -> Section:
    found = find_runs(paths)
    commands = {run.path: run.about.get("command", "") for run in found}
    commits = sorted({str(run.about.get("commit")) for run in found})
    data = sorted({str(run.about.get("data"))[:16] for run in found})
    text = f"Code: {', '.join(commits)}. Data: {', '.join(data)}. What each run was started by:"
    return Section("To repeat it", text, commands=tuple(dict.fromkeys(commands.values())))


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values.drop_duplicates())

"""The sections of a report on a set of runs: the answer, its evidence, and the runs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from gptstar.errors import ConfigError
from gptstar.evaluation.statistics.effects import LEVEL, SEEDS
from gptstar.plots.labels import level_texts
from gptstar.results.answer import Answer, answer, states_text
from gptstar.results.arms import (
    BITS,
    OUTCOME,
    RATE,
    SEED,
    by_levels,
    levels_of,
    measured,
    name_of,
    outcome_of,
    without_seed,
)
from gptstar.results.attention_heads import heads_of
from gptstar.results.budgets import STEPS, cost_table, costs, recipes
from gptstar.results.commands import as_typed
from gptstar.results.evaluations import lengths_of, tasks_of
from gptstar.results.factors import effect_table, level_effects, reference_of, tokens_to
from gptstar.results.figures import budgets_figure, effects_figure, factor_figure, loss_figure
from gptstar.results.frames import AT_EDGE, curves_of, runs_of, varied
from gptstar.results.head_sections import head_sections
from gptstar.results.length_sections import length_sections
from gptstar.results.loaded import Loaded
from gptstar.results.recall_frame import recall_of
from gptstar.results.recall_sections import recall_sections
from gptstar.results.section import Section
from gptstar.results.speeds import deviation_text, n_at_a_time, speed_section, took_turns
from gptstar.results.table import duration
from gptstar.results.task_sections import task_sections
from gptstar.results.tried import Tried, at_best_rate, counted, numeric_factors, tuning_of, values_tried
from gptstar.results.verdict_sections import verdict_sections
from gptstar.training.settings import shown_keys

EXPLAINED = (
    "95 % intervals are by Student's t over seeds, from pairs of runs that differ in this setting only, averaged over "
    f"all other settings. With {SEEDS} seeds and p < {LEVEL} an effect is significant, otherwise preliminary."
)

COLUMNS = (
    "In tables, `level` is a value of the factor, and `against` the value that it is compared with. `seeds` counts "
    "seeds, `cells` combinations of all other settings that are averaged, and `left out` runs without a partner."
)
TURNS = "Arms took turns, so that times compare if nothing else ran on the machine."
NO_TURNS = (
    "Hours are not compared, because the arms did not take turns: other work on the machine may have slowed one arm. "
    "Put `seed=` before the arms in the sweep."
)


def sections(found: Loaded, against: str | None = None) -> Iterator[Section]:
    """Yield the sections of a report; `against` is the reference level of factors that have it.

    Raises:
        ConfigError: there is no run, or no factor has the level.
    """
    found.check_has_runs()
    everything, curves, lengths, tasks = runs_of(found), curves_of(found), lengths_of(found), tasks_of(found)
    heads, recall = heads_of(found), recall_of(found)
    runs, tuning, all_factors = counted(everything), tuning_of(everything), varied(everything)
    everything, factors = by_levels(everything, all_factors), varied(runs)
    runs = by_levels(runs, factors)
    levels = [str(level) for factor in without_seed(factors) for level in levels_of(runs, factor)]
    if against is not None and against not in levels:
        raise ConfigError(f"--against {against}: no factor has this level; known levels: {', '.join(levels) or 'none'}")
    finished = runs[runs["state"] == "finished"]
    yield from _answer(answer(runs, lengths, factors, tuning))
    if found.damaged:
        yield Section("What can't be read", "\n\n".join(f"{line}." for line in found.damaged.values()))
    yield from _tuning(tuning[tuning["state"] == "finished"])
    yield from _factors(finished, factors)
    yield from _effects(finished, factors, against)
    yield from length_sections(runs, lengths, factors, against, EXPLAINED)
    yield from verdict_sections(found)
    yield from recall_sections(runs, recall, factors)
    yield from head_sections(runs, heads, factors)
    yield from _losses(runs, curves, factors)
    yield from _costs(finished, curves, factors, against)
    if (speed := speed_section(finished, curves, factors, against)) is not None:
        yield speed
    yield from task_sections(tasks)
    yield _overview(everything, all_factors, has_lengths=not lengths.empty)
    yield _all_runs(everything, all_factors)
    yield _repeat(found)


def _answer(answer: Answer) -> Iterator[Section]:
    yield Section("Result", "\n\n".join(answer.findings))
    if answer.limits:
        yield Section("What can't be concluded", points=answer.limits)


def _tuning(finished: pd.DataFrame) -> Iterator[Section]:
    """Yield sections on the values that arms of a tuned sweep chose from, over the runs that chose."""
    for section in _factors(finished, varied(finished)) if len(finished) else ():
        text = f"From the runs that chose a value, whose seed counts for nothing else. {section.text}"
        yield replace(section, text=text)


def _factors(finished: pd.DataFrame, factors: Sequence[str]) -> Iterator[Section]:
    """Yield a section on the loss against each numeric factor, for every arm."""
    for factor in numeric_factors(finished, factors):
        figure = factor_figure(finished, factor, factors)
        if figure is None:  # each arm tried one value
            continue
        heading, table = f"Loss against {name_of(factor)}", None
        text = "Means over seeds; bars go from the lowest seed to the highest."
        if factor == RATE:
            tried = values_tried(finished, RATE, factors)
            heading, table = "Learning rates", _rates(tried)
            if any(each.is_at_edge for each in tried):
                text += (
                    " If an arm's best rate is at the end of those tried, a rate beyond may be better, and the arm's "
                    "comparison with others is open."
                )
        elif RATE in factors:
            text += " Each arm is at its best learning rate."
        yield Section(heading, text, table=table, picture=figure)


def _rates(tried: Sequence[Tried]) -> pd.DataFrame:
    rates = sorted({rate for each in tried for rate in each.values.index})
    texts = dict(zip(rates, level_texts(rates), strict=True))
    return pd.DataFrame(
        [
            {
                **(each.levels or {"arm": "all"}),
                **dict(zip(texts.values(), each.values["mean"].reindex(rates), strict=True)),
                "best": texts[each.best],
                "": "at the end of its rates" * each.is_at_edge,
            }
            for each in tried
        ]
    )


def _effects(finished: pd.DataFrame, factors: Sequence[str], against: str | None) -> Iterator[Section]:
    tuned, left = at_best_rate(finished, factors)
    outcome = outcome_of(finished)
    changes = level_effects(tuned, left, outcome, against=against)
    if not changes:
        return
    text = [EXPLAINED, COLUMNS]
    if outcome == BITS:
        text.append("The runs have different tokens, so losses per token aren't comparable: these are bits per byte.")
    if AT_EDGE in finished:
        text.append("Each arm is at the learning rate that it chose by runs of another seed, as above.")
    elif len(left) < len(factors):
        text.append(
            "Each arm is at its best learning rate, as above. The same seeds chose the rate, which favours an arm with "
            "several nearly equal rates, by up to half a standard error."
        )
    has_hours, compares = tuned["tokens"].nunique() > 1, took_turns(tuned, left)
    if has_hours and not compares:
        text.append(NO_TURNS)
    heading = f"Effects on {outcome.replace('_', ' ')}"
    yield Section(heading, " ".join(text), table=effect_table(changes), picture=effects_figure(changes))
    if has_hours and compares and (hours := level_effects(tuned, left, "hours", against=against, ratio=True)):
        yield Section(
            "Effects on hours of training",
            " ".join(filter(None, ["Ratios.", TURNS, deviation_text(tuned, left), EXPLAINED])),
            table=effect_table(hours),
        )


def _losses(runs: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str]) -> Iterator[Section]:
    figure = loss_figure(runs, curves, factors)
    if figure is not None:
        text = "Training and validation loss: the mean over seeds, with a band from the best to the worst seed."
        table = _tokens_to(runs, curves, factors)
        if table is not None:
            text += " ± is a standard deviation."
        if table is not None and table.columns[-1] != "seeds":
            text += (
                " The last column shows when an arm's mean over seeds reached the highest final loss of all arms, "
                "interpolated over the logarithm of tokens between validations; ≤: at the first validation already."
            )
        yield Section("Loss during training", text, table=table, picture=figure)


def _tokens_to(runs: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame | None:
    """Return a table of the arms' final losses, with the tokens to reach the final loss of the worst arm."""
    arms = without_seed(factors)
    validated = curves[curves["metric"] == "validation/loss"]
    finished = measured(runs[runs["state"] == "finished"], OUTCOME)
    if not arms or finished.empty:
        return None
    grouped = finished.groupby(arms, sort=False, dropna=False)
    table = grouped.agg(
        **{
            "million tokens": ("tokens", lambda tokens: tokens.mean() / 1e6),
            "median time": ("hours", lambda hours: duration(hours.median())),
            "longest time": ("hours", lambda hours: duration(hours.max())),
            "validation loss": (OUTCOME, "mean"),
            "± over seeds": (OUTCOME, lambda losses: f"{losses.std():.3f}" if len(losses) > 1 else ""),
            "seeds": ("run", "size"),
        }
    )
    target = table["validation loss"].max()
    means = [validated[validated["run"].isin(lines["run"])].groupby("tokens")["value"].mean() for _, lines in grouped]
    if any(len(each) > 1 for each in means):
        table[f"million tokens to {target:.3f}"] = [_million_tokens_to(target, list(each.items())) for each in means]
    return table.reset_index()


def _million_tokens_to(loss: float, curve: Sequence[tuple[float, float]]) -> str:
    """Format the tokens at which a curve reached a loss, as a bound if it begins below; empty if it never did."""
    tokens = tokens_to(curve, loss)
    if math.isnan(tokens):
        return ""
    return ("≤ " if curve[0][1] <= loss else "") + f"{tokens / 1e6:#.3g}".removesuffix(".")


def _costs(
    finished: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str], against: str | None
) -> Iterator[Section]:
    """Yield a section on the tokens and hours to the reference recipe's final loss, if a single factor varies."""
    tuned, left = at_best_rate(measured(finished, OUTCOME), factors)
    varied = [each for each in left if each not in (SEED, STEPS)]
    if len(varied) != 1 or varied[0] == RATE or outcome_of(finished) == BITS:
        return
    candidates = recipes(tuned, varied[0], factors)
    factor = varied[0]
    level = reference_of(levels_of(tuned, factor), against)
    reference = next((each for each in candidates if level in each.arms), None)
    if reference is None or len(candidates) < 2:
        return
    n_validations = curves[curves["metric"] == "validation/loss"].groupby("run").size().max()
    if all(len(each.budgets) < 2 for each in candidates) and not n_validations > 1:
        return  # no recipe has two points to interpolate between
    text = (
        f"The cost of each recipe to reach the final loss of {factor}={level}, as a ratio to the cost of the latter, "
        "seed by seed. It is interpolated over the logarithm between a recipe's final losses at its budgets, or "
        f"between its validations if it has one budget. 95 % intervals are by Student's t over seeds. "
    )
    has_hours = took_turns(tuned, left)
    text += " ".join(filter(None, [TURNS, deviation_text(tuned, left)])) if has_hours else NO_TURNS
    table = cost_table(costs(candidates, reference, curves), has_hours=has_hours)
    heading = f"Tokens {'and hours ' * has_hours}to the loss of {factor}={level}"
    yield Section(heading, text, table=table, picture=budgets_figure(candidates))


def _overview(runs: pd.DataFrame, factors: Sequence[str], *, has_lengths: bool) -> Section:
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    at_once = n_at_a_time(runs)
    how = f", up to {at_once} runs at a time" if at_once > 1 else ""
    lines = [f"{count}: {states_text(runs)}; {duration(runs['hours'].sum())} of training in all{how}."]
    if factors:
        varied = [f"{each} ({', '.join(level_texts(levels_of(runs, each)))})" for each in factors]
        lines.append(f"Varied: {'; '.join(varied)}.")
    shown = [*shown_keys(), *(["model.positions"] if has_lengths else [])]  # on which reading further depends
    alike = [f"{key} {runs[key].iloc[0]}" for key in shown if key in runs and runs[key].nunique() == 1]
    if alike:
        lines.append("The same in all runs: " + ", ".join(alike) + ".")
    return Section("What was run", "\n\n".join(lines))


def _all_runs(runs: pd.DataFrame, factors: Sequence[str]) -> Section:
    columns = ["run", *factors, "state", "step", "tokens", "validation_loss", "tokens_per_second", "training"]
    table = runs.assign(training=runs["hours"].map(duration))[columns]
    return Section("All runs", table=table, is_long=True)


def _repeat(found: Loaded) -> Section:
    runs = list(found.runs.values())
    commits = sorted({str(run.about.get("commit")) for run in runs})
    data = sorted({str(run.about.get("data"))[:16] for run in runs})
    runs.sort(key=lambda run: run.began)
    commands = as_typed([run.about.get("command", "") for run in runs])
    text = f"Code: {', '.join(commits)}. Data: {', '.join(data)}. Commands that started the runs:"
    return Section("How to repeat it", text, commands=tuple(commands), is_long=len(commands) > 1)

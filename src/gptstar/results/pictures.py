"""Pictures of sets of runs: losses as they went, loss beyond the training context, and effects."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from gptstar.evaluation.plots import BLUE, GREY, styles
from gptstar.results.budgets import Recipe
from gptstar.results.factors import SEED, LevelEffect, level_text


def plot_curves(frame: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str]) -> Figure | None:
    """Draw validation loss against tokens: a line for each arm's mean over seeds, a band from best to worst seed.

    `frame` and `curves` are what `frames.runs` and `frames.curves` return. Returns None if nothing was validated.
    """
    arms = [each for each in factors if each != SEED]
    validated = curves[curves["metric"] == "validation/loss"].merge(frame[["run", *arms]], on="run")
    if validated.empty:
        return None
    figure, (axes,) = _figure(1)
    for (name, lines), style in zip(_grouped(validated, arms), styles(), strict=False):
        by_tokens = lines.groupby("tokens")["value"].agg(["mean", "min", "max"])
        axes.plot(by_tokens.index, by_tokens["mean"], label=name, linewidth=1.3, markersize=4, **style)
        axes.fill_between(by_tokens.index, by_tokens["min"], by_tokens["max"], color=style["color"], alpha=0.15, lw=0)
    axes.set(xlabel="tokens", ylabel="validation loss (nats a token)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, axes, ", ".join(arms))
    return figure


def plot_lengths(frame: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Figure | None:
    """Draw loss beyond the training context: a panel for each context, a line for each arm, bars from best to worst.

    `frame` and `lengths` are what `frames.runs` and `frames.lengths` return. Returns None if no length was studied.
    """
    if lengths.empty:
        return None
    arms = [each for each in factors if each not in (SEED, "data.context_length")]
    merged = lengths.merge(frame[["run", *arms]], on="run")
    trained = sorted(merged["trained_at"].unique())
    figure, panels = _figure(len(trained))
    for axes, length in zip(panels, trained, strict=True):
        for (name, lines), style in zip(_grouped(merged, [*arms, "rotary_scaling"]), styles(), strict=False):
            losses = lines[lines["trained_at"] == length].groupby("context_length")["loss"]
            by_length = losses.agg(["mean", "min", "max"])
            reach = [by_length["mean"] - by_length["min"], by_length["max"] - by_length["mean"]]
            axes.errorbar(
                by_length.index, by_length["mean"], reach, label=name, capsize=2, linewidth=1.2, markersize=4, **style
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(merged[merged["trained_at"] == length]["context_length"].unique()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
        axes.axvspan(axes.get_xlim()[0], length, color=GREY, alpha=0.12, lw=0)
        axes.set_title(f"trained at {length:,}", fontsize=10)
        axes.set_xlabel("context length (tokens)")
    panels[0].set_ylabel("loss (nats a token)")
    low, highest = merged["loss"].min(), merged[merged["multiple"] <= 1]["loss"].max()
    top = min(merged["loss"].max(), highest + max(1.0, 1.5 * (highest - low)))
    panels[0].set_ylim(low - 0.1, top + 0.1)
    _legend(figure, panels[0], ", ".join(arms))
    return figure


def plot_effects(changes: Sequence[LevelEffect]) -> Figure | None:
    """Draw a line for each effect, with its 95 % interval; None if there is no effect."""
    if not changes:
        return None
    names = [f"{each.factor}: {each.level} against {each.against}" for each in reversed(changes)]
    width = max(7.2, 4 + 0.085 * max(map(len, names)))  # inches; what is below the axis needs four
    figure, (axes,) = _figure(1, (width, 1.2 + 0.34 * len(changes)), grid="x")
    for place, each in enumerate(reversed(changes)):
        effect, colour = each.effect, BLUE if each.effect.is_significant else GREY
        reach = 0 if math.isnan(effect.low) else effect.high - effect.value
        inside = BLUE if effect.is_significant else "white"
        axes.errorbar(effect.value, place, xerr=reach, fmt="o", color=colour, capsize=3, mfc=inside)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(changes)), names)
    axes.set_ylim(-0.6, len(changes) - 0.4)
    axes.margins(x=0.1)
    axes.set_xlabel(
        f"change of {changes[0].outcome.replace('_', ' ')}\n95 % intervals over seeds; filled: significant, open: not"
    )
    return figure


def plot_budgets(recipes: Sequence[Recipe]) -> Figure | None:
    """Draw final loss against tokens: a line for each recipe with several budgets, a level for one, dots for runs.

    Returns None if no recipe has several.
    """
    if all(len(recipe.budgets) < 2 for recipe in recipes):
        return None
    figure, (axes,) = _figure(1)
    for recipe, style in zip(recipes, styles(), strict=False):
        means = recipe.runs.groupby("tokens")["validation_loss"].mean()
        axes.plot(means.index, means, label=recipe.name, linewidth=1.3, markersize=4, **style)
        axes.plot(recipe.runs["tokens"], recipe.runs["validation_loss"], ".", color=style["color"], alpha=0.5)
        if len(means) == 1:
            axes.axhline(means.iloc[0], color=style["color"], linestyle=":", linewidth=1)
    axes.set(xlabel="tokens", ylabel="final validation loss (nats a token)", xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(figure, axes, "")
    return figure


def _grouped(frame: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the lines of each arm with its name; rotary positions that are not scaled go without saying."""
    if not keys:
        yield "all", frame
        return
    for levels, lines in frame.groupby(list(keys), sort=False, dropna=False):
        shown = [level for key, level in zip(keys, levels, strict=True) if (key, level) != ("rotary_scaling", "none")]
        yield ", ".join(map(level_text, shown)) or "all", lines


def _figure(
    n_panels: int, size: tuple[float, float] | None = None, grid: Literal["x", "y"] = "y"
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size or (max(6.4, 3.0 * n_panels), 4.2), dpi=150, layout="constrained")
    panels = list(figure.subplots(1, n_panels, sharey=True, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=grid, alpha=0.25)
    return figure, panels


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        longest = max(map(len, names))
        columns = 2 if longest > 24 else 3 if longest > 14 else 4
        legend = figure.legend(
            handles, names, title=title, frameon=False, loc="outside lower center", ncols=columns, fontsize=8
        )
        for text in legend.get_texts():
            text.set_parse_math(False)

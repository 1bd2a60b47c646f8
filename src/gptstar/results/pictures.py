"""Pictures of sets of runs: losses as they went, loss beyond the training context, and effects."""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from gptstar.evaluation.plots import BLUE, COLOURS, DASHES, GREY, MARKERS
from gptstar.results.budgets import Recipe
from gptstar.results.effects import SEED, LevelEffect


def plot_curves(frame: pd.DataFrame, curves: pd.DataFrame, factors: Sequence[str]) -> Figure | None:
    """Validation loss against tokens: a line an arm, the mean over seeds, and a band from its best seed to its worst.

    Args:
        frame: of `runs`.
        curves: of `curves`.

    Returns:
        None where nothing was validated.
    """
    arms = [each for each in factors if each != SEED]
    found = curves[curves["metric"] == "validation/loss"].merge(frame[["run", *arms]], on="run")
    if found.empty:
        return None
    figure, (axes,) = _figure(1)
    groups = list(found.groupby(arms, sort=False, dropna=False)) if arms else [((), found)]
    for (name, lines), style in zip(groups, _styles(), strict=False):
        by_tokens = lines.groupby("tokens")["value"].agg(["mean", "min", "max"])
        label = ", ".join(_word(each) for each in name) if isinstance(name, tuple) else _word(name)
        axes.plot(by_tokens.index, by_tokens["mean"], label=label or "all", linewidth=1.3, **style)
        axes.fill_between(by_tokens.index, by_tokens["min"], by_tokens["max"], color=style["color"], alpha=0.15, lw=0)
    axes.set(xlabel="tokens", ylabel="validation loss (nats a token)")
    axes.xaxis.set_major_formatter(_thousands)
    _legend(figure, axes, ", ".join(arms))
    return figure


def plot_lengths(frame: pd.DataFrame, lengths: pd.DataFrame, factors: Sequence[str]) -> Figure | None:
    """Loss beyond the training context: a panel for each, a line for each other arm, bars from best to worst seed.

    Args:
        frame: of `runs`.
        lengths: of `lengths`.

    Returns:
        None where nothing was read at other lengths.
    """
    if lengths.empty:
        return None
    arms = [each for each in factors if each not in (SEED, "data.context_length")]
    found = lengths.merge(frame[["run", *arms]], on="run")
    trained = sorted(found["trained_at"].unique())
    figure, panels = _figure(len(trained))
    highest = found[found["multiple"] <= 1]["loss"].max()
    for axes, length in zip(panels, trained, strict=True):
        here = found[found["trained_at"] == length]
        for (name, lines), style in zip(_grouped(found, [*arms, "rotary_scaling"]), _styles(), strict=False):
            lines = lines[lines["trained_at"] == length]
            by_length = lines.groupby("context_length")["loss"].agg(["mean", "min", "max"])
            reach = [by_length["mean"] - by_length["min"], by_length["max"] - by_length["mean"]]
            axes.errorbar(by_length.index, by_length["mean"], reach, label=name, capsize=2, linewidth=1.2, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(here["context_length"].unique()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
        axes.axvspan(axes.get_xlim()[0], length, color=GREY, alpha=0.12, lw=0)
        axes.set_title(f"trained at {length:,}", fontsize=10)
        axes.set_xlabel("context length (tokens)")
    panels[0].set_ylabel("loss (nats a token)")
    low = found["loss"].min()
    top = min(found["loss"].max(), highest + max(1.0, 1.5 * (highest - low)))
    panels[0].set_ylim(low - 0.1, top + 0.1)
    _legend(figure, panels[0], ", ".join(arms))
    return figure


def plot_effects(found: Sequence[LevelEffect]) -> Figure | None:
    """A line for each effect, with its 95 % interval; None where there is none."""
    if not found:
        return None
    names = [f"{each.factor}: {each.level} against {each.against}" for each in reversed(found)]
    width = max(7.2, 4 + 0.085 * max(map(len, names)))  # inches; what is below the axis needs four
    figure = Figure(figsize=(width, 1.2 + 0.34 * len(found)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, each in enumerate(reversed(found)):
        value, low, high = each.effect.value, each.effect.low, each.effect.high
        reach = [[0], [0]] if math.isnan(low) else [[value - low], [high - value]]
        filled = each.effect.is_significant
        axes.errorbar(
            [value],
            [place],
            xerr=reach,
            fmt="o",
            color=BLUE if filled else GREY,
            capsize=3,
            mfc=BLUE if filled else "white",
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.margins(x=0.1)
    axes.set_xlabel(
        f"change of {found[0].outcome.replace('_', ' ')}\n95 % intervals over seeds; filled: significant, open: not"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def plot_budgets(found: Sequence[Recipe]) -> Figure | None:
    """Final loss against tokens: a line for each recipe with several budgets, a level for each with one, a dot a run.

    Returns:
        None where no recipe has several.
    """
    if all(len(recipe.budgets) < 2 for recipe in found):
        return None
    figure, (axes,) = _figure(1)
    for recipe, style in zip(found, _styles(), strict=False):
        means = recipe.runs.groupby("tokens")["validation_loss"].mean()
        axes.plot(means.index, means, label=recipe.name, linewidth=1.3, **style)
        axes.plot(recipe.runs["tokens"], recipe.runs["validation_loss"], ".", color=style["color"], alpha=0.5)
        if len(means) == 1:
            axes.axhline(means.iloc[0], color=style["color"], linestyle=":", linewidth=1)
    axes.set(xlabel="tokens", ylabel="final validation loss (nats a token)", xlim=(0, None))
    axes.xaxis.set_major_formatter(_thousands)
    _legend(figure, axes, "")
    return figure


def save(figure: Figure, path: Path) -> None:
    """As PNG or SVG, by the name."""
    figure.savefig(path)


def _grouped(found: pd.DataFrame, keys: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    groups = []
    for name, lines in found.groupby(list(keys), sort=False, dropna=False):
        words = [_word(each) for each in name[:-1]] + ([] if name[-1] == "none" else [str(name[-1])])
        groups.append((", ".join(words) or "all", lines))
    return groups


def _figure(n_panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.4, 3.0 * n_panels), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, n_panels, sharey=True, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    return figure, panels


def _styles() -> Iterator[dict[str, Any]]:
    for colour, marker, dash in zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False):
        yield {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4}


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


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _thousands(value: float, _: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"

"""Pictures of a run: its loss; and of models: their loss against context length, and by position in the window."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from gptstar.evaluation.length.curve import Curve
from gptstar.evaluation.statistics.intervals import Interval

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6e6e6e"
COLOURS = BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"
"""Okabe and Ito's palette, without its yellow: colour-blind readers can tell them apart."""
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
"""For prints without colour."""
LEAST_HEIGHT = 0.5
"""Nats that an axis shows at least: noise is not to look like a slope."""


def plot_loss(rows: Sequence[dict[str, float]], path: Path, title: str, bigram: float | None = None) -> None:
    """Training and validation loss from `metrics.csv` against tokens seen, and a bigram model's as a line to beat."""
    figure, axes = _figure(title, "tokens seen", "loss (nats a token)")
    train = [(row["tokens"], row["train/loss"]) for row in rows if "train/loss" in row]
    rate = max((row["tokens"] / row["step"] for row in rows if "tokens" in row), default=1.0)  # tokens a step
    validation = [(row["step"] * rate, row["validation/loss"]) for row in rows if "validation/loss" in row]
    if train:
        axes.plot(*zip(*train, strict=True), color=BLUE, linewidth=1, alpha=0.6, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=ORANGE, marker="o", markersize=4, label="validation")
        last = validation[-1]
        axes.annotate(f"{last[1]:.2f}", last, xytext=(0, 8), textcoords="offset points", ha="right", color=ORANGE)
    if bigram is not None:
        axes.axhline(bigram, color=GREY, linestyle="--", linewidth=1, label=f"bigram model, {bigram:.2f}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")
    if train or validation or bigram is not None:
        axes.legend(frameon=False)
    figure.savefig(path)


def plot_context_length(curves: Sequence[Curve], path: Path, title: str, *, bits: bool = False) -> None:
    """Loss against context length, the training context marked; bars are 95 % intervals.

    Where a model is undefined, a cross stands above and no line goes there. With `bits` the loss is in bits per byte,
    which compare models with different tokenizers, in place of nats per token.
    """
    unit = "bits a byte" if bits else "loss on the same targets (nats a token)"
    figure, axes = _figure(title, "context length (tokens)", unit)
    axes.set_xscale("log", base=2)
    for number, (curve, style) in enumerate(zip(curves, styles(), strict=False)):
        points = [(each.context_length, each.bits_per_byte if bits else each.loss) for each in curve.lengths]
        defined = [(x, y) for x, y in points if y is not None]
        undefined = [x for x, y in points if y is None]
        shift = 2 ** (0.02 * (number - (len(curves) - 1) / 2))  # so that bars stand beside each other
        label = f"{curve.name} (×: undefined)" if undefined else curve.name
        _bars(axes, [x * shift for x, _ in defined], [y for _, y in defined], label, style)
        heights = [0.97 - 0.04 * number] * len(undefined)
        near_axis = axes.get_xaxis_transform()
        axes.plot(undefined, heights, linestyle="", marker="x", color=style["color"], transform=near_axis)
        if len(curves) == 1:
            for x, y in defined:
                axes.annotate(f"{y.value:.2f}", (x, y.value), xytext=(6, 8), textcoords="offset points", color=BLUE)
    axes.margins(x=0.12)
    _mark_training(axes, curves)
    _scale(axes, sorted({result.context_length for curve in curves for result in curve.lengths}), bits)
    if len(curves) > 1 or any(result.loss is None for result in curves[0].lengths):
        _legend(figure)
    figure.savefig(path)


def plot_positions(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Loss by the number of tokens before a target, at each model's longest context; bars are 95 % intervals."""
    figure, axes = _figure(title, "tokens before the target", "loss (nats a token)")
    axes.set_xscale("log", base=2)
    for curve, style in zip(curves, styles(), strict=False):
        middles = [(position.first * position.last) ** 0.5 for position in curve.positions]
        _bars(axes, middles, [position.loss for position in curve.positions], curve.name, style)
    _mark_training(axes, curves)
    _scale(axes, sorted({position.last for curve in curves for position in curve.positions}), bits=False)
    if len(curves) > 1:
        _legend(figure)
    figure.savefig(path)


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def styles() -> Iterator[dict[str, Any]]:
    """Yield a colour, a marker and a dash for each line of a picture, over and over."""
    for colour, marker, dash in zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False):
        yield {"color": colour, "marker": marker, "linestyle": dash}


def _bars(axes: Axes, x: Sequence[float], y: Sequence[Interval], name: str, style: dict[str, Any]) -> None:
    """Points, and bars where there are intervals (matplotlib leaves out what is NaN)."""
    values = [each.value for each in y]
    reach = [[each.value - each.low for each in y], [each.high - each.value for each in y]]
    axes.errorbar(x, values, reach, label=name, capsize=3, markersize=5, linewidth=1.4, **style)


def _mark_training(axes: Axes, curves: Sequence[Curve]) -> None:
    """Shade what was seen in training, or mark where it ends for each model."""
    trained = {curve.trained_at for curve in curves}
    trained_at = curves[0].trained_at
    if trained == {None}:
        return
    if len(trained) == 1 and trained_at is not None:
        low, high = axes.get_xlim()
        if low < trained_at:
            axes.axvspan(low, trained_at, color=GREY, alpha=0.12, linewidth=0)
        axes.set_xlim(low, high)
        note = f"seen in training (up to {trained_at})"
    else:
        for curve, style in zip(curves, styles(), strict=False):
            if curve.trained_at is not None:
                axes.axvline(curve.trained_at, color=style["color"], linestyle=":", linewidth=1, zorder=0)
        note = "dotted: seen in training up to here"
    axes.text(0.02, 0.03, note, transform=axes.transAxes, color=GREY, fontsize=8)


def _scale(axes: Axes, places: Sequence[int], bits: bool) -> None:
    """Put ticks at `places`, and leave room for the note below and for crosses above."""
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(_in_thousands if len(places) > 6 else ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max(0.62 * (high - low), LEAST_HEIGHT / (2 if bits else 1))
    axes.set_ylim(middle - half, middle + half)


def _in_thousands(value: float, _: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _legend(figure: Figure) -> None:
    legend = figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names of checkpoints may hold what is taken for maths

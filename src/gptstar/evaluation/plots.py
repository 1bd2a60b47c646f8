"""Pictures of a run: its loss, and its loss against context length."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from gptstar.evaluation.length import LengthResult

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6e6e6e"
"""From Okabe and Ito's palette, which colour-blind readers can tell apart."""


def plot_loss(rows: Sequence[dict[str, float]], path: Path, title: str, bigram: float | None = None) -> None:
    """Training and validation loss against tokens seen.

    Args:
        rows: of `metrics.csv`.
        bigram: loss of the bigram model, drawn as a line to beat.
    """
    axes = _axes(title, "tokens seen", "loss (nats a token)")
    train = [(row["tokens"], row["train/loss"]) for row in rows if "train/loss" in row]
    tokens_per_step = {row["step"]: row["tokens"] for row in rows if "tokens" in row}
    rate = max((tokens / step for step, tokens in tokens_per_step.items()), default=1.0)
    validation = [(row["step"] * rate, row["validation/loss"]) for row in rows if "validation/loss" in row]
    if train:
        axes.plot(*zip(*train, strict=True), color=BLUE, linewidth=1, alpha=0.6, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=ORANGE, marker="o", markersize=4, label="validation")
        axes.annotate(
            f"{validation[-1][1]:.2f}",
            validation[-1],
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=ORANGE,
        )
    if bigram is not None:
        axes.axhline(bigram, color=GREY, linestyle="--", linewidth=1, label=f"bigram model, {bigram:.2f}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k")
    if train or validation or bigram is not None:
        axes.legend(frameon=False)
    _save(axes, path)


def plot_context_length(results: Sequence[LengthResult], trained_at: int | None, path: Path, title: str) -> None:
    """Loss against context length, with the training context marked; bars are two standard errors."""
    axes = _axes(title, "context length (tokens)", "loss on the same held-out tokens (nats)")
    lengths, losses = [r.context_length for r in results], [r.loss for r in results]
    axes.errorbar(lengths, losses, [2 * r.standard_error for r in results], color=BLUE, marker="o", capsize=3)
    for result in results:
        label = f"{result.loss:.2f}"
        axes.annotate(
            label, (result.context_length, result.loss), xytext=(6, 8), textcoords="offset points", color=BLUE
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
    if trained_at is not None:
        low, high = axes.get_xlim()
        axes.axvspan(low, trained_at, color=GREY, alpha=0.12, linewidth=0)
        axes.set_xlim(low, high)
        axes.text(
            0.02, 0.03, f"seen in training (up to {trained_at})", transform=axes.transAxes, color=GREY, fontsize=8
        )
    low, high = axes.get_ylim()
    middle, half = (
        (low + high) / 2,
        max(0.6 * (high - low), 0.5),
    )  # room for the note; noise is not to look like a slope
    axes.set_ylim(middle - half, middle + half)
    _save(axes, path)


def _axes(title: str, x: str, y: str) -> Axes:
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return axes


def _save(axes: Axes, path: Path) -> None:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.savefig(path)

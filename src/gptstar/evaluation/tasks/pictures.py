"""A picture of results on tasks: ours with its interval among the published figures."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from gptstar.evaluation.results import Metric, TaskResult, TaskResults
from gptstar.evaluation.tasks.published import Published
from gptstar.evaluation.tasks.tables import COLUMNS, SHORT, differences, is_share, metric_of, title

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6e6e6e"
"""From Okabe and Ito's palette, which colour-blind readers can tell apart; shapes differ too."""

PANELS_PER_ROW = 3
MOST_PANELS = 24
CHANCE = {"piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5}


def plot_tasks(results: TaskResults, published: Published, path: Path) -> None:
    """Draw a panel a metric: our point with its 95 % interval above the published ones, each with its name.

    Of tasks that were not published on, the first metric is drawn, of 24 panels at most.
    """
    found = _panels(results)
    panels = found[:MOST_PANELS]
    n_rows = max(1, math.ceil(len(panels) / PANELS_PER_ROW))
    n_columns = max(1, min(len(panels), PANELS_PER_ROW))
    size = (3.9 * n_columns + 0.6, 3.1 * n_rows + 0.7)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title(results), fontsize=10)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, *panel, str(results.checkpoint["name"]), published)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    legend = "filled: ours, with its 95 % interval; hollow: published; ×: published, another metric or unclear which"
    more = f"; {len(found) - len(panels)} more tasks are not drawn" if len(found) > len(panels) else ""
    figure.supxlabel(legend + more, fontsize=8)
    figure.savefig(path)


def _panels(results: TaskResults) -> list[tuple[TaskResult, Metric]]:
    """What was published on, then the first metric of each other task."""
    by_name = {task.task: task for task in results.tasks}
    found = [(by_name[task], metric_of(by_name[task], name)) for task, name in COLUMNS if task in by_name]
    known = {task for task, _ in COLUMNS}
    found += [(task, task.metrics[0]) for task in results.tasks if task.task not in known and task.metrics]
    return [(task, metric) for task, metric in found if metric is not None]


def _draw(axes: Axes, task: TaskResult, metric: Metric, name: str, published: Published) -> None:
    normed = metric_of(task, "acc_norm") if metric.name == "acc" else None
    ours = [(_shortened(name), metric), *([("… acc_norm", normed)] if normed else [])]
    theirs = [(row.model, figure) for row in published.rows if (figure := row.figure(task.task, metric.name))]
    scale = 100.0 if is_share(metric) else 1.0
    for place, (_, each) in enumerate(ours):
        low, high = (each.value if end is None else end for end in (each.low, each.high))
        ends = [[max(0.0, each.value - low) * scale], [max(0.0, high - each.value) * scale]]
        axes.errorbar(each.value * scale, place, xerr=ends, color=BLUE, marker="o", markersize=6, capsize=3)
    if metric.low is not None and metric.high is not None:
        axes.axvspan(metric.low * scale, metric.high * scale, color=BLUE, alpha=0.08, linewidth=0)
    for place, (_, figure) in enumerate(theirs, start=len(ours)):
        marker = "o" if figure.measures is None else "x"
        axes.plot(figure.value * scale, place, linestyle="none", marker=marker, color=ORANGE, markerfacecolor="white")
    names = [label for label, _ in (*ours, *theirs)]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label in axes.get_yticklabels()[: len(ours)]:
        label.set(color=BLUE, fontweight="bold")
    axes.set_ylim(len(names) - 0.3, -0.6)
    known = published.tasks.get(task.task)
    other_items = known is not None and bool(differences(task, metric, published))
    axes.set_title(
        f"{known.title if known else task.task}{f', {metric.items:,} items' if other_items else ''}", fontsize=9
    )
    better = "better →" if metric.higher_is_better else "← better"
    axes.set_xlabel(f"{SHORT.get(metric.name, metric.name)}   {better}", fontsize=8)
    _scale(axes, [metric.value, *(figure.value for _, figure in theirs)], logarithmic=metric.kind == "perplexity")
    if metric.name.startswith("acc") and task.task in CHANCE:
        chance = 100 * CHANCE[task.task]
        axes.axvline(chance, color=GREY, linestyle=":", linewidth=1)
        near_axis = axes.get_xaxis_transform()
        axes.text(chance, 0.01, " chance", transform=near_axis, fontsize=7, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="x", labelsize=8)


def _scale(axes: Axes, values: Sequence[float], *, logarithmic: bool) -> None:
    """Perplexities that are far apart are read on a logarithmic axis."""
    if logarithmic and max(values) > 5 * min(values):
        axes.set_xscale("log")
        if max(values) < 1000:
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.08)


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"

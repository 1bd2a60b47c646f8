"""A picture of results on tasks: ours with its interval among the published figures."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from gptstar.evaluation.plots import BLUE, GREY, ORANGE
from gptstar.evaluation.results import Metric, TaskResult, TaskResults, grouped_by
from gptstar.evaluation.tasks.published import published_rows
from gptstar.evaluation.tasks.tables import COLUMNS, SHORT, differences, is_share, metric_of, title

PANELS_PER_ROW = 3
MOST_PANELS = 24
CHANCE = {"piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5}


def plot_tasks(results: TaskResults, path: Path) -> None:
    """Draw a panel a metric: our point with its 95 % interval above the published ones, each with its name.

    Of tasks that were not published on, the first metric is drawn, of a group in place of its tasks; 24 panels at most.
    """
    panels = _panels(results)
    n_panels = min(len(panels), MOST_PANELS)
    n_rows, n_columns = max(1, math.ceil(n_panels / PANELS_PER_ROW)), max(1, min(n_panels, PANELS_PER_ROW))
    figure = Figure(figsize=(3.9 * n_columns + 0.6, 3.1 * n_rows + 0.7), dpi=150, layout="constrained")
    figure.suptitle(title(results), fontsize=10)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, (task, metric) in zip(grid.flat, panels, strict=False):
        _draw(axes, task, metric, str(results.checkpoint["name"]))
    for axes in grid.flat[n_panels:]:
        axes.set_axis_off()
    legend = "filled: ours, with its 95 % interval; hollow: published; ×: published, another metric or unclear which"
    more = f"; {len(panels) - n_panels} more tasks are not drawn" if len(panels) > n_panels else ""
    figure.supxlabel(legend + more, fontsize=8)
    figure.savefig(path)


def _panels(results: TaskResults) -> list[tuple[TaskResult, Metric]]:
    """The figures that were published, then the first metric of each other task."""
    by_name = {task.task: task for task in results.tasks}
    panels = [(by_name[task], metric_of(by_name[task], name)) for task, name in COLUMNS if task in by_name]
    grouped = grouped_by(results.tasks)
    others = [task for task in results.tasks if task.task not in (*published_rows().tasks, *grouped) and task.metrics]
    panels += [(task, task.metrics[0]) for task in others]
    return [(task, metric) for task, metric in panels if metric is not None]


def _draw(axes: Axes, task: TaskResult, metric: Metric, name: str) -> None:
    published = published_rows()
    ours = [(name if len(name) <= 18 else f"{name[:17]}…", metric)]
    normed = metric_of(task, "acc_norm")
    if normed is not None and metric.name == "acc":
        ours.append(("… acc_norm", normed))
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
    panel_title = task.task
    if task.task in published.tasks:
        items = f", {metric.items:,} items" if differences(task, metric) else ""
        panel_title = published.tasks[task.task].title + items
    axes.set_title(panel_title, fontsize=9)
    better = "better →" if metric.higher_is_better else "← better"
    axes.set_xlabel(f"{SHORT.get(metric.name, metric.name)}   {better}", fontsize=8)
    values = [metric.value, *(figure.value for _, figure in theirs)]
    if metric.kind == "perplexity" and max(values) > 5 * min(values):  # so that all of them can be read
        axes.set_xscale("log")
        if max(values) < 1000:
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.08)
    if metric.name.startswith("acc") and task.task in CHANCE:
        chance = 100 * CHANCE[task.task]
        axes.axvline(chance, color=GREY, linestyle=":", linewidth=1)
        axes.text(chance, 0.01, " chance", transform=axes.get_xaxis_transform(), fontsize=7, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="x", labelsize=8)

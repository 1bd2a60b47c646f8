"""Data for the plot of scores: results on tasks, with published figures."""

import math
from collections.abc import Sequence
from dataclasses import replace

from gptstar.evaluation.compare import names_of
from gptstar.evaluation.results import Metric, TaskResult, TaskResults, grouped_by
from gptstar.evaluation.tasks.published import published_rows
from gptstar.evaluation.tasks.tables import COLUMNS, SHORT, differences, is_share, metric_of
from gptstar.plots.scores import Score, ScorePanel

CHANCE = {"piqa": 0.5, "hellaswag": 0.25, "winogrande": 0.5}


def score_panels(results: Sequence[TaskResults]) -> list[ScorePanel]:
    """Make a panel for each published metric, then for the first metric of each other task or group of tasks.

    Args:
        results: the results of one or several checkpoints.
    """
    named = list(zip(names_of([each.checkpoint for each in results]), results, strict=True))
    names = list(dict.fromkeys(task.task for each in results for task in each.tasks))
    chosen = [(task, metric) for task, metric in COLUMNS if task in names]
    for each in results:
        known = (*published_rows().tasks, *grouped_by(each.tasks))
        others = [task for task in each.tasks if task.task not in known and task.metrics]
        chosen += [(task.task, task.metrics[0].name) for task in others]
    return [panel for task, metric in dict.fromkeys(chosen) if (panel := _panel(named, task, metric)) is not None]


def beside_published(panels: Sequence[ScorePanel]) -> list[str]:
    """Return a line for each model: how many published scores are better, within its intervals, or worse."""
    lines = []
    compared = [score for panel in panels for score in panel.ours if score.is_same_metric]
    for model in dict.fromkeys(score.model for score in compared):
        counts = {"better": 0, "within its 95 % intervals": 0, "worse": 0}
        for panel in panels:
            for ours in (score for score in panel.ours if score.model == model and not math.isnan(score.low)):
                for theirs in (score for score in panel.published if score.is_same_metric):
                    is_within = ours.low <= theirs.value <= ours.high
                    is_better = (theirs.value > ours.value) == panel.higher_is_better
                    counts["within its 95 % intervals" if is_within else "better" if is_better else "worse"] += 1
        if n_published := sum(counts.values()):
            shares = ", ".join(f"{count} are {word}" for word, count in counts.items())
            lines.append(f"Of {n_published} published scores compared with {model}'s, {shares}.")
    return lines


def _panel(named: Sequence[tuple[str, TaskResults]], task: str, metric: str) -> ScorePanel | None:
    measured = [
        (name, result, figure)
        for name, each in named
        for result in each.tasks
        if result.task == task and (figure := metric_of(result, metric)) is not None
    ]
    if not measured:
        return None
    _, first, example = measured[0]
    scale = 100.0 if is_share(example) else 1.0
    ours = []
    for name, result, figure in measured:
        ours.append(_score(name, figure, scale))
        normed = metric_of(result, "acc_norm")
        if normed is not None and metric == "acc":
            label = "… acc_norm" if len(named) == 1 else f"{name} acc_norm"
            ours.append(replace(_score(label, normed, scale), is_same_metric=False))
    figures = [(row.model, other) for row in published_rows().rows if (other := row.figure(task, metric))]
    published = [Score(model, each.value * scale, is_same_metric=each.measures is None) for model, each in figures]
    known = metric.startswith("acc") and task in CHANCE
    return ScorePanel(
        _title(first, example),
        SHORT.get(metric, metric),
        example.higher_is_better,
        ours,
        published,
        is_ratio=example.kind == "perplexity",
        chance=100 * CHANCE[task] if known else None,
    )


def _score(name: str, metric: Metric, scale: float) -> Score:
    low, high = (math.nan if end is None else end * scale for end in (metric.low, metric.high))
    return Score(name, metric.value * scale, low, high)


def _title(task: TaskResult, metric: Metric) -> str:
    known = published_rows().tasks.get(task.task)
    if known is None:
        return task.task
    return known.title + (f", {metric.items:,} items" if differences(task, metric) else "")

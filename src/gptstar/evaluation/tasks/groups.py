"""Scores of task groups: the harness's own aggregation, with our confidence intervals."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.metrics import aggregate_subtask_metrics

from gptstar.evaluation.groups import strata_of
from gptstar.evaluation.results import Kind, Metric, Sample, TaskResult, from_nats
from gptstar.evaluation.statistics.intervals import RESAMPLES, Interval, ratio_interval
from gptstar.evaluation.statistics.strata import Stratum, pooled
from gptstar.evaluation.tasks.collect import RIGHT_ANSWER, as_metric, full_name

Samples = Mapping[str | None, Mapping[str, Sequence[Sample]]]
"""The items of each task by subset; the subset None holds all items."""

MOST_DRAWS = 2**26
"""The most items drawn for an interval; 1,000 resamples of BLiMP's 67,000 items take a second."""


def group_results(
    groups: Mapping[str, Group], output: Mapping[str, Any], tasks: Mapping[str, TaskResult], samples: Samples
) -> list[TaskResult]:
    """Return a result for each group that the harness scores, in its order, with outer groups first.

    Args:
        groups: the groups by name.
        output: the harness's results.
        tasks: our results of the tasks, by name.
        samples: the items of each task, by subset.
    """
    results = []
    for name, figures in ((name, output.get("groups", {}).get(name)) for name in groups):
        if figures is None:
            continue
        members = [tasks[each] for each in dict.fromkeys(task.task_name for task in groups[name].get_all_tasks())]
        metrics, by_size = _metrics_of(
            groups[name], figures, output["higher_is_better"].get(name, {}), members, samples
        )
        result = TaskResult(
            task=name,
            version=str(output["versions"][name]),
            source={},
            context_length=max(member.context_length for member in members),
            num_fewshot=max(member.num_fewshot for member in members),
            metrics=tuple(metrics),
            samples=(),
            n_cut=sum(member.n_cut for member in members),
            members=tuple(member.task for member in members),
            by_size=by_size,
        )
        results.append(result)
    return results


def _metrics_of(
    group: Group,
    figures: Mapping[str, Any],
    higher_is_better: Mapping[str, bool | None],
    members: Sequence[TaskResult],
    samples: Samples,
) -> tuple[list[Metric], tuple[str, ...]]:
    """Return a group's metrics, and the names of those that weight tasks by their number of items."""
    weighs = {each.metric: each.weight_by_size for each in group.aggregate_metric_list or ()}
    metrics: list[Metric] = []
    by_size: list[str] = []
    for key, value in figures.items():
        name, _, filter_name = key.partition(",")
        if filter_name and not name.endswith("_stderr"):
            full = full_name(name, filter_name)
            better = bool(higher_is_better.get(name, True))
            metrics += _over_subsets(full, members, samples, by_size=weighs[name], value=float(value), better=better)
            by_size += [full] * weighs[name]
    if metrics and all(_metric(member, RIGHT_ANSWER) for member in members):
        weight_by_size = next(iter(weighs.values()))  # as for the group's first metric
        metrics += _over_subsets(RIGHT_ANSWER, members, samples, by_size=weight_by_size, value=None, better=False)
        by_size += [RIGHT_ANSWER] * weight_by_size
    return metrics, tuple(dict.fromkeys(by_size))


def _over_subsets(
    name: str, members: Sequence[TaskResult], samples: Samples, *, by_size: bool, value: float | None, better: bool
) -> list[Metric]:
    """Return a group's metric over all items, with the harness's `value` if given, and over each subset."""
    metrics = []
    for subset, of_tasks in samples.items():
        own = [(member, metric) for member in members if (metric := _metric(member, name, subset)) and metric.items]
        if not own:
            continue
        sizes, values = [metric.items for _, metric in own], [metric.value for _, metric in own]
        figure = aggregate_subtask_metrics(values, sizes, by_size) if value is None or subset is not None else value
        kinds = {metric.kind for _, metric in own}
        kind: Kind = kinds.pop() if kinds in ({"mean"}, {"bits_per_byte"}) else "other"
        interval = Interval(figure, math.nan, math.nan, "none")
        if kind != "other":
            strata = strata_of(name, kind, [of_tasks[each.task] for each, _ in own], by_size=by_size)
            interval = _interval(figure, kind, strata)
        metrics.append(as_metric(name, interval, kind, better, sum(sizes), subset))
    return metrics


def _interval(figure: float, kind: Kind, strata: Sequence[Stratum]) -> Interval:
    """Return the interval of a group's metric; none if all items have the same score, or a task has only one item."""
    items = pooled(strata)
    if items is None:
        return Interval(figure, math.nan, math.nan, "none")
    numbers, clusters = items
    n_resamples = min(RESAMPLES, max(999, MOST_DRAWS // len(numbers)))
    interval = ratio_interval(numbers, np.ones(len(numbers)), clusters, n_resamples=n_resamples)
    if not interval.low < interval.high:
        return Interval(figure, math.nan, math.nan, "none")
    if kind == "bits_per_byte":
        interval = interval.transformed(functools.partial(from_nats, kind=kind))
    elif all(((x >= 0) & (x <= 1)).all() for x in (np.asarray(stratum.numerators) for stratum in strata)):
        interval = replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))
    return Interval(figure, interval.low, interval.high, f"{interval.method}, stratified by task")


def _metric(task: TaskResult, name: str, subset: str | None = None) -> Metric | None:
    return next((each for each in task.metrics if (each.name, each.subset) == (name, subset)), None)

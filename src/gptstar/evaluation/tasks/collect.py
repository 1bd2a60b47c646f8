"""From the harness's samples to figures with intervals."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api import metrics as harness_metrics
from lm_eval.api.task import Task

from gptstar.evaluation.results import Kind, Metric, Sample, from_nats
from gptstar.evaluation.statistics.intervals import Interval, accuracy_interval, join_clusters, ratio_interval

KINDS: dict[Callable[..., float], Kind] = {
    harness_metrics.mean: "mean",
    harness_metrics.perplexity: "perplexity",
    harness_metrics.weighted_perplexity: "perplexity",
    harness_metrics.bits_per_byte: "bits_per_byte",
}
"""By how the harness aggregates a metric."""


def samples_of(
    task: Task, logged: Sequence[Mapping[str, Any]], hashes: Sequence[str], clusters: Sequence[int]
) -> tuple[Sample, ...]:
    """A sample for each item, from what the harness logged by item and filter, and from hashes and clusters by item."""
    scores: dict[int, dict[str, float | tuple[float, float]]] = {}
    choices: dict[int, tuple[float, ...]] = {}
    kinds = kinds_of(task)
    for entry in logged:
        item = entry["doc_id"]
        item_scores = scores.setdefault(item, {})
        for metric in entry["metrics"]:
            score = _number(entry[metric])
            if isinstance(score, float) and kinds.get(metric) == "perplexity":
                score = (score, 1.0)
            if score is not None:
                item_scores[_full_name(metric, entry["filter"])] = score
        if task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood"):
            choices[item] = tuple(float(response[0]) for response in entry["filtered_resps"])
    return tuple(
        Sample(item, hashes[item], clusters[item], scores[item], choices.get(item, ())) for item in sorted(scores)
    )


def copies_of(logged: Sequence[Mapping[str, Any]], hashes: Sequence[str]) -> list[int]:
    """By item, the number of the first that is a copy: of the same hash, or one that asks the model the very same."""
    asked = {entry["doc_id"]: repr(entry["arguments"]) for entry in logged}
    numbers = join_clusters(range(len(hashes)), hashes)
    return join_clusters(numbers, [asked.get(number, number) for number in range(len(hashes))])


def kinds_of(task: Task) -> dict[str, Kind]:
    """How each metric of a task follows from its items."""
    return {name: KINDS.get(function, "other") for name, function in task.aggregation().items()}


def metrics_of(
    task: Task, figures: Mapping[str, Any], samples: Sequence[Sample], *, subset: str | None = None
) -> tuple[Metric, ...]:
    """Each figure of a task over some samples; those that are not means over items are the harness's, of all items."""
    kinds, higher_is_better, metrics = kinds_of(task), task.higher_is_better(), []
    clusters = [sample.cluster for sample in samples]
    for key, value in figures.items():
        name, _, filter_name = key.partition(",")
        if name.endswith("_stderr") or name not in kinds:
            continue
        full_name = _full_name(name, filter_name)
        scores = [sample.scores[full_name] for sample in samples if full_name in sample.scores]
        kind = kinds[name] if scores and len(scores) == len(samples) else "other"
        if kind != "other":
            interval = interval_of(kind, scores, clusters)
        elif subset is None:
            interval = Interval(float(value), math.nan, math.nan, "none")
        else:
            continue
        low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
        better = bool(higher_is_better.get(name, True))
        metrics.append(
            Metric(full_name, interval.value, low, high, interval.method, kind, better, len(samples), subset)
        )
    return tuple(metrics)


def interval_of(kind: Kind, scores: Sequence[Any], clusters: Sequence[int]) -> Interval:
    """A figure and its 95 % interval, from the scores of its items."""
    values = np.asarray(scores, dtype=float)
    if kind != "mean":
        log_likelihoods, weights = values.T
        return ratio_interval(-log_likelihoods, weights, clusters).transformed(functools.partial(from_nats, kind=kind))
    if np.isin(values, (0, 1)).all():
        return accuracy_interval(values, clusters)
    return ratio_interval(values, np.ones(len(values)), clusters)


def _full_name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric}_{filter_name}"


def _number(value: Any) -> float | tuple[float, float] | None:
    """A score as JSON can hold it; None for what some tasks keep for an aggregation of their own."""
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, int | float) for each in value):
        return float(value[0]), float(value[1])
    return None

"""From what the harness found to figures with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api import metrics as harness_metrics
from lm_eval.api.task import Task

from gptstar.evaluation.results import Kind, Metric, Sample
from gptstar.evaluation.statistics.intervals import Interval, accuracy_interval, mean_interval, ratio_interval

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
    """One for each item, in order.

    Args:
        logged: the harness's samples: one for each item and filter.
        hashes, clusters: by number of the item.
    """
    scores: dict[int, dict[str, float | tuple[float, float]]] = {}
    choices: dict[int, tuple[float, ...]] = {}
    kinds = kinds_of(task)
    for entry in logged:
        item = entry["doc_id"]
        suffix = "" if entry["filter"] == "none" else f"_{entry['filter']}"
        for metric in entry["metrics"]:
            score = _number(entry[metric])
            if score is not None:
                if isinstance(score, float) and kinds.get(metric) == "perplexity":
                    score = (score, 1.0)
                scores.setdefault(item, {})[metric + suffix] = score
        if task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood"):
            choices[item] = tuple(float(response[0]) for response in entry["filtered_resps"])
    return tuple(
        Sample(item, hashes[item], clusters[item], scores.get(item, {}), choices.get(item, ()))
        for item in sorted({entry["doc_id"] for entry in logged})
    )


def kinds_of(task: Task) -> dict[str, Kind]:
    """How each metric of a task follows from its items."""
    return {name: KINDS.get(function, "other") for name, function in task.aggregation().items()}


def metrics_of(
    task: Task, found: Mapping[str, Any], samples: Sequence[Sample], *, subset: str | None = None
) -> tuple[Metric, ...]:
    """Each figure of a task with its interval.

    Args:
        found: the harness's own figures, such as `{"acc,none": 0.6}`; for metrics that are no means over items.
        samples: of the items that the figures are to be over.
    """
    kinds, better, metrics = kinds_of(task), task.higher_is_better(), []
    clusters = [sample.cluster for sample in samples]
    for key, value in found.items():
        name, _, filtered = key.partition(",")
        if name.endswith("_stderr") or name not in kinds:
            continue
        full = name if filtered == "none" else f"{name}_{filtered}"
        numbers = [sample.scores.get(full) for sample in samples]
        kind = kinds[name] if numbers and all(number is not None for number in numbers) else "other"
        if kind == "other" and subset is not None:
            continue
        interval = (
            interval_of(kind, numbers, clusters)
            if kind != "other"
            else Interval(float(value), math.nan, math.nan, "none")
        )
        low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
        higher = bool(better.get(name, True))
        metrics.append(Metric(full, interval.value, low, high, interval.method, kind, higher, len(samples), subset))
    return tuple(metrics)


def interval_of(kind: Kind, numbers: Sequence[Any], clusters: Sequence[int]) -> Interval:
    """A figure and its 95 % interval, from the numbers of its items."""
    if kind == "mean":
        values = np.asarray(numbers, dtype=float)
        if np.isin(values, (0, 1)).all():
            return accuracy_interval(values, clusters)
        return mean_interval(values, clusters)
    log_likelihoods, weights = np.asarray(numbers, dtype=float).T
    transform = np.exp if kind == "perplexity" else _bits
    return ratio_interval(-log_likelihoods, weights, clusters, transform=transform)


def _bits(nats: np.ndarray) -> np.ndarray:
    return nats / math.log(2)


def _number(value: Any) -> float | tuple[float, float] | None:
    """A score as JSON can hold it; None for what some tasks keep for an aggregation of their own."""
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, int | float) for each in value):
        return float(value[0]), float(value[1])
    return None

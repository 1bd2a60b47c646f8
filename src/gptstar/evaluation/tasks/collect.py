"""Conversion of the harness's samples to metrics with confidence intervals."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api import metrics as harness_metrics
from lm_eval.api.task import Task

from gptstar.evaluation.results import Kind, Metric, Sample, from_nats
from gptstar.evaluation.statistics.intervals import Interval, accuracy_interval, join_clusters, ratio_interval

BYPASS = "bypass"
"""The harness's name for the metric of a task without metrics."""

KINDS: dict[Callable[..., float], Kind] = {
    harness_metrics.mean: "mean",
    harness_metrics.perplexity: "perplexity",
    harness_metrics.weighted_perplexity: "perplexity",
    harness_metrics.bits_per_byte: "bits_per_byte",
}
"""The kind of a metric, by the function with which the harness aggregates it."""

RIGHT_ANSWER = "bits_per_byte"
"""The metric that we add to every multiple-choice task: the bits per byte of its right answers."""


def samples_of(
    task: Task, logged: Sequence[Mapping[str, Any]], hashes: Sequence[str], clusters: Sequence[int]
) -> tuple[Sample, ...]:
    """Return a sample for each item, from the harness's log by item and filter, and the items' hashes and clusters."""
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
                item_scores[full_name(metric, entry["filter"])] = score
        if task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood"):
            choices[item] = tuple(float(response[0]) for response in entry["filtered_resps"])
        is_scored = task.OUTPUT_TYPE == "multiple_choice" and BYPASS not in kinds
        if is_scored and (answer := _right_answer(task, entry)) is not None:
            item_scores.setdefault(RIGHT_ANSWER, answer)
    return tuple(
        Sample(item, hashes[item], clusters[item], scores[item], choices.get(item, ())) for item in sorted(scores)
    )


def copies_of(logged: Sequence[Mapping[str, Any]], hashes: Sequence[str]) -> list[int]:
    """Return for each item the index of its first copy: an item with the same hash, or with the same requests."""
    requests = {entry["doc_id"]: repr(entry["arguments"]) for entry in logged}
    numbers = join_clusters(range(len(hashes)), hashes)
    return join_clusters(numbers, [requests.get(number, number) for number in range(len(hashes))])


def kinds_of(task: Task) -> dict[str, Kind]:
    """Return the kind of each metric of a task."""
    return {name: KINDS.get(function, "other") for name, function in task.aggregation().items()}


def metrics_of(
    task: Task, figures: Mapping[str, Any], samples: Sequence[Sample], *, subset: str | None = None
) -> tuple[Metric, ...]:
    """Return the metrics of a task over some samples, with the bits per byte of its right answers.

    Metrics that are not means over items are taken from the harness, for all items only. With `predict_only` there are
    no metrics.
    """
    kinds, higher_is_better, metrics = kinds_of(task), task.higher_is_better(), []
    if BYPASS in kinds:
        return ()
    clusters = [sample.cluster for sample in samples]
    for key, value in figures.items():
        name, _, filter_name = key.partition(",")
        if name.endswith("_stderr") or name not in kinds:
            continue
        full = full_name(name, filter_name)
        scores = [sample.scores[full] for sample in samples if full in sample.scores]
        kind = kinds[name] if scores and len(scores) == len(samples) else "other"
        if kind != "other":
            interval = interval_of(kind, scores, clusters)
        elif subset is None:
            interval = Interval(float(value), math.nan, math.nan, "none")
        else:
            continue
        better = bool(higher_is_better.get(name, True))
        metrics.append(as_metric(full, interval, kind, better, len(samples), subset))
    answers = [sample.scores[RIGHT_ANSWER] for sample in samples if RIGHT_ANSWER in sample.scores]
    if task.OUTPUT_TYPE == "multiple_choice" and answers and len(answers) == len(samples):
        interval = interval_of("bits_per_byte", answers, clusters)
        metrics.append(as_metric(RIGHT_ANSWER, interval, "bits_per_byte", False, len(samples), subset))
    return tuple(metrics)


def as_metric(name: str, interval: Interval, kind: Kind, better: bool, items: int, subset: str | None) -> Metric:
    """Return a metric for the results; `better` says whether a higher value is better."""
    low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
    return Metric(name, interval.value, low, high, interval.method, kind, better, items, subset)


def interval_of(kind: Kind, scores: Sequence[Any], clusters: Sequence[int]) -> Interval:
    """Return a metric's value with its 95 % interval, from the scores of its items."""
    values = np.asarray(scores, dtype=float)
    if kind != "mean":
        log_likelihoods, weights = values.T
        return ratio_interval(-log_likelihoods, weights, clusters).transformed(functools.partial(from_nats, kind=kind))
    if np.isin(values, (0, 1)).all():
        return accuracy_interval(values, clusters)
    return ratio_interval(values, np.ones(len(values)), clusters)


def full_name(metric: str, filter_name: str) -> str:
    """Return a metric's name in results, with the answers' filter if the task has several filters."""
    return metric if filter_name == "none" else f"{metric}_{filter_name}"


def _right_answer(task: Task, entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the log-likelihood of an item's right answer in nats, and the answer's length in bytes.

    If there are several right answers, the one with the fewest bits per byte counts. None if the task names none.
    """
    right = task.doc_to_text(entry["doc"]) if task.multiple_input else entry["target"]
    numbers = right if isinstance(right, list) else [right]
    if any(isinstance(number, str) for number in numbers):
        texts = task.doc_to_choice(entry["doc"])
        numbers = [texts.index(text) for text in numbers if text in texts]
    answers = []
    for number in numbers:
        if isinstance(number, int) and 0 <= number < len(entry["arguments"]):
            n_bytes = len(entry["arguments"][number][1].encode("utf-8", "surrogatepass"))
            answers.append((float(entry["filtered_resps"][number][0]), float(n_bytes)))
    return max((answer for answer in answers if answer[1]), key=lambda answer: answer[0] / answer[1], default=None)


def _number(value: Any) -> float | tuple[float, float] | None:
    """Return a score as JSON can hold it; None for other values, which some tasks keep for their own aggregation."""
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, int | float) for each in value):
        return float(value[0]), float(value[1])
    return None

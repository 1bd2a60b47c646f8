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

BYPASS = "bypass"
"""What the harness calls the metric of a task that is to have none."""

KINDS: dict[Callable[..., float], Kind] = {
    harness_metrics.mean: "mean",
    harness_metrics.perplexity: "perplexity",
    harness_metrics.weighted_perplexity: "perplexity",
    harness_metrics.bits_per_byte: "bits_per_byte",
}
"""By how the harness aggregates a metric."""

RIGHT_ANSWER = "bits_per_byte"
"""The metric that every multiple-choice task has beside the harness's own: of its right answers."""


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
    """Each figure of a task over some samples, and the bits per byte of its right answers.

    Figures that are not means over items are the harness's, of all items. Where the harness was told to compute none,
    there are none.
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
    """A figure for the results; `better` says whether a higher one is."""
    low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
    return Metric(name, interval.value, low, high, interval.method, kind, better, items, subset)


def interval_of(kind: Kind, scores: Sequence[Any], clusters: Sequence[int]) -> Interval:
    """A figure and its 95 % interval, from the scores of its items."""
    values = np.asarray(scores, dtype=float)
    if kind != "mean":
        log_likelihoods, weights = values.T
        return ratio_interval(-log_likelihoods, weights, clusters).transformed(functools.partial(from_nats, kind=kind))
    if np.isin(values, (0, 1)).all():
        return accuracy_interval(values, clusters)
    return ratio_interval(values, np.ones(len(values)), clusters)


def full_name(metric: str, filter_name: str) -> str:
    """A metric's name in results, with the filter of the answers if the task has several."""
    return metric if filter_name == "none" else f"{metric}_{filter_name}"


def _right_answer(task: Task, entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """An item's right answer: its log-likelihood in nats, and its bytes as the model was asked for it.

    Of several right answers it is the one with the fewest bits per byte. None where the task names none.
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
    """A score as JSON can hold it; None for what some tasks keep for an aggregation of their own."""
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, int | float) for each in value):
        return float(value[0]), float(value[1])
    return None

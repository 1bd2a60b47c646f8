"""Evaluations set against the first of them, item by item. B minus A throughout."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gptstar.errors import ConfigError
from gptstar.evaluation.comparable import Pairs, check_comparable, differences, paired_items
from gptstar.evaluation.groups import Tested, compared_group
from gptstar.evaluation.results import Kind, Metric, TaskResult, TaskResults, from_nats, grouped_by
from gptstar.evaluation.statistics.effects import LEVEL
from gptstar.evaluation.statistics.paired import Paired, holm, paired_accuracy, paired_ratio

CAVEAT = (
    "This compares checkpoints, not recipes: each is one training run, and other seeds would differ too. "
    "The intervals and p are over the choice of items."
)

PRELIMINARY = 0.05
"""A difference with a smaller p is at least preliminary; below `LEVEL` it is significant."""


@dataclass(frozen=True)
class Row:
    """One metric of one task, over the items that both have.

    Attributes:
        a, b: the metric over those items.
        difference: b - a.
        ratio: b / a, of perplexities only.
        low, high: of the 95 % interval of the ratio where there is one, else of the difference; None without interval.
        p: two-sided; None where the metric is not a mean over items.
        p_holm: adjusted for the tasks; of each task's primary metric only.
        test: that p comes from.
        primary: the task's first metric that has a p: one a task, and these are Holm's family.
        items: in both.
        is_member: whether a group of the task is compared too, which is tested in its place.
    """

    task: str
    metric: str
    kind: Kind
    higher_is_better: bool
    a: float
    b: float
    difference: float
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    test: str
    primary: bool
    items: int
    is_member: bool = False

    @property
    def verdict(self) -> str:
        """Whether B is better or worse than A, by the adjusted p where there is one, in words."""
        p = self.p if self.p_holm is None else self.p_holm
        if p is None:
            return "not tested"
        if p >= PRELIMINARY:
            return "not significant"
        word = "better" if (self.difference > 0) == self.higher_is_better else "worse"
        return f"{word}, {'significant' if p < LEVEL else 'preliminary'}"


@dataclass(frozen=True)
class Comparisons:
    """Several results of one kind, each set against the first.

    Attributes:
        names: what to call them, all different; the first is the reference, called A in tables, the next one B.
        rows: of each but the reference.
        notes: what a reader has to know, a line each.
    """

    kind: Literal["tasks", "length"]
    names: tuple[str, ...]
    rows: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...]


def letter(number: int) -> str:
    """What a result is called in a table, by its number from 0: A to Z, then A1 and so on."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def compare_tasks(results: Sequence[TaskResults]) -> Comparisons:
    """Pair evaluations with the first, item by item, and test each metric they share.

    Items are paired by their hash. Accuracies have McNemar's test, and other metrics a paired bootstrap-t; items of one
    cluster count as one. Perplexities are tested by their losses and shown with their ratio, which is exp of the
    losses' difference. Holm's adjustment has one family: the first metric of each task, of all that are compared. A
    group counts as one task, in place of its tasks.

    Raises:
        ConfigError: no task in both; a task whose items, version, context length or few-shot examples differ.
    """
    rows: list[Sequence[Row]] = []
    notes: list[str] = []
    for number, other in enumerate(results[1:], start=1):
        of_other, said = _compared(results[0], other, letter(number))
        rows.append(of_other)
        notes += said
    adjusted, n_tests = with_holm(rows)
    if n_tests > 1:
        n_others = len(results) - 1
        family = f"{n_tests} tasks, by the first metric of each" if n_others == 1 else f"{n_tests} tests in all"
        notes.append(f"Holm's p is adjusted for {family}.")
    return Comparisons("tasks", names_of([each.checkpoint for each in results]), adjusted, (*notes, CAVEAT))


def with_holm(rows: Sequence[Sequence[Row]]) -> tuple[tuple[tuple[Row, ...], ...], int]:
    """Adjust the p of all primary rows for their number, which is returned too."""
    tests = [row.p for of_one in rows for row in of_one if row.primary and row.p is not None]
    adjusted = iter(holm(tests))
    return tuple(
        tuple(replace(row, p_holm=next(adjusted)) if row.primary and row.p is not None else row for row in of_one)
        for of_one in rows
    ), len(tests)


def _compared(a: TaskResults, b: TaskResults, of_b: str) -> tuple[list[Row], list[str]]:
    """The rows of two evaluations, not adjusted, and notes that call them A and `of_b`."""
    tasks_b = {task.task: task for task in b.tasks}
    shared = [(task, tasks_b[task.task]) for task in a.tasks if task.task in tasks_b]
    if not shared:
        names = [", ".join(task.task for task in results.tasks) or "nothing" for results in (a, b)]
        raise ConfigError(f"no task is in both results: {names[0]} in the one, {names[1]} in the other")
    notes = differences(a, b, of_b)
    seeds = [results.fewshot_seed for results in (a, b)]
    pairs_of: dict[str, Pairs] = {}
    for task_a, task_b in shared:
        check_comparable(task_a, task_b, seeds, of_b)
        if not task_a.members:
            pairs_of[task_a.task], said = paired_items(task_a, task_b, of_b)
            notes += said
    grouped = grouped_by([task for task, _ in shared])
    rows: list[Row] = []
    for task_a, task_b in shared:
        if task_a.members:
            of_task = _group_rows(task_a, task_b, pairs_of)
        else:
            pairs = pairs_of[task_a.task]
            whole = len(task_a.samples) == len(pairs) == len(task_b.samples)
            of_task = _rows(task_a, task_b, functools.partial(_tested, task_a.task, pairs), len(pairs), whole=whole)
        is_member = task_a.task in grouped
        rows += [replace(row, is_member=is_member, primary=row.primary and not is_member) for row in of_task]
    if not rows:
        raise ConfigError(f"the results of {shared[0][0].task} have no metric in common: evaluate without predict_only")
    return rows, notes


def _group_rows(a: TaskResult, b: TaskResult, pairs_of: Mapping[str, Pairs]) -> list[Row]:
    """A row for each metric of a group that both have, over the items of its tasks that both have."""
    if missing := [member for member in a.members if member not in pairs_of]:
        raise ConfigError(f"{a.task} can't be compared: the results lack its task {missing[0]}: evaluate again")
    members = [pairs_of[member] for member in a.members]

    def tested(metric: Metric) -> Tested | None:
        has = [pairs for pairs in members if all(metric.name in each.scores for pair in pairs for each in pair)]
        return compared_group(metric, has, by_size=metric.name in a.by_size) if has else None

    return _rows(a, b, tested, sum(map(len, members)), whole=False)


def _rows(
    a: TaskResult, b: TaskResult, tested: Callable[[Metric], Tested | None], n_items: int, *, whole: bool
) -> list[Row]:
    """A row for each metric that both have; only for means over items unless all items are paired (`whole`).

    Args:
        tested: a metric of A and of B over the same items, and how they differ; None where the items can't tell.
    """
    metrics_b = {metric.name: metric for metric in b.metrics if metric.subset is None}
    rows: list[Row] = []
    for metric in a.metrics:
        other = metrics_b.get(metric.name)
        if metric.subset is not None or other is None or other.kind != metric.kind:
            continue
        found = tested(metric) if metric.kind != "other" else None
        if found is None and whole:  # the two figures, and nothing to test
            change = Paired(other.value - metric.value, math.nan, math.nan, math.nan, "none")
            found = (metric.value, other.value), change
        if found is None:
            continue
        values, paired = found
        low, high, p = (None if math.isnan(number) else number for number in (paired.low, paired.high, paired.p))
        row = Row(
            task=a.task,
            metric=metric.name,
            kind=metric.kind,
            higher_is_better=metric.higher_is_better,
            a=values[0],
            b=values[1],
            difference=values[1] - values[0],
            ratio=paired.difference if metric.kind == "perplexity" else None,
            low=low,
            high=high,
            p=p,
            p_holm=None,
            test=paired.test,
            primary=p is not None and not any(each.primary for each in rows),
            items=n_items,
        )
        rows.append(row)
    return rows


def _tested(task: str, pairs: Pairs, metric: Metric) -> Tested:
    """A metric of A and of B over the same items, and how they differ: by their ratio where it is a perplexity."""
    name, kind = metric.name, metric.kind
    if not all(name in sample.scores for pair in pairs for sample in pair):
        raise ConfigError(f"{task}: the results lack {name} of some items: evaluate again")
    scores = np.asarray([(first.scores[name], second.scores[name]) for first, second in pairs], dtype=float)
    a, b = scores[:, 0], scores[:, 1]  # (item,), or (item, 2): log-likelihoods, and what they are per
    # Of a file without what tells clusters each item is its own: the other side knows better.
    both = [[sample.cluster for sample in side] for side in zip(*pairs, strict=True)]
    clusters = min(both, key=lambda side: len(set(side)))
    if kind == "mean":
        is_accuracy = np.isin(scores, (0, 1)).all()
        paired = paired_accuracy(a, b, clusters) if is_accuracy else paired_ratio(a, b, np.ones(len(a)), clusters)
        return (float(a.mean()), float(b.mean())), paired
    weights = a[:, 1]
    if not (weights == b[:, 1]).all():
        raise ConfigError(f"{task}: {name} weighs the same items differently in A and B, so it can't be compared")
    losses = -a[:, 0], -b[:, 0]
    paired = paired_ratio(*losses, weights, clusters)
    value_a, value_b = (from_nats(loss.sum() / weights.sum(), kind) for loss in losses)
    difference, low, high = (from_nats(nats, kind) for nats in (paired.difference, paired.low, paired.high))
    return (value_a, value_b), replace(paired, difference=difference, low=low, high=high)


def names_of(checkpoints: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names that differ: by step, place or content where the checkpoints' own don't, by letter at last."""
    names = [str(checkpoint.get("name") or "unnamed") for checkpoint in checkpoints]
    for name in {name for name in names if names.count(name) > 1}:
        alike = [number for number, each in enumerate(names) if each == name]
        marks = [letter(number) for number in alike]
        for key, form in (("step", "step {}"), ("path", "{}"), ("sha256", "{:.8}")):
            values = [checkpoints[number].get(key) for number in alike]
            if None not in values and len({str(value) for value in values}) == len(values):
                marks = [form.format(value) for value in values]
                break
        for number, mark in zip(alike, marks, strict=True):
            names[number] = f"{name} ({mark})"
    return tuple(names)


def by_checkpoint(results: Sequence[TaskResults]) -> list[TaskResults]:
    """Join evaluations of one checkpoint, of the same dtype and few-shot examples, in the order of the last of each.

    Of a task that several of them have the last one counts.
    """
    joined: dict[tuple[str, ...], TaskResults] = {}
    for each in results:
        known = (each.checkpoint.get(key) for key in ("sha256", "path", "name"))
        of_checkpoint = next(filter(None, known), None)
        protocol = [each.protocol.get("dtype"), each.fewshot_seed]
        key = tuple(map(str, (of_checkpoint, *protocol)))
        before = joined.pop(key).tasks if key in joined else ()
        tasks = {task.task: task for task in (*before, *each.tasks)}
        joined[key] = replace(each, tasks=tuple(tasks.values()))
    return list(joined.values())

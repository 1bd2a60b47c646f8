"""Comparisons of evaluations with the first of them, item by item. All differences are B minus A."""

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

CHECKPOINTS = "This compares checkpoints, not recipes: each is one training run, and other seeds would differ too."
CAVEAT = f"{CHECKPOINTS} Intervals and p cover the choice of items only."

PRELIMINARY = 0.05
"""The level of p below which a difference is preliminary; below `LEVEL` it is significant."""


@dataclass(frozen=True)
class Row:
    """The comparison of one metric of one task, over the items that both results have.

    Attributes:
        a, b: the metric's values over those items.
        difference: b - a.
        ratio: b / a, for perplexities only.
        low, high: the 95 % interval of the ratio if there is one, otherwise of the difference; None without interval.
        p: the two-sided p-value; None if the metric is not a mean over items.
        p_holm: the p-value adjusted by Holm's method, for each task's primary metric only.
        test: the name of the test that gives p.
        primary: whether this is the task's first metric with a p; these metrics are Holm's family.
        items: the number of items in both results.
        is_member: whether the task belongs to a group that is compared too, and tested in its place.
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
        """Whether B is better or worse than A in words, by the adjusted p if there is one."""
        p = self.p if self.p_holm is None else self.p_holm
        if p is None:
            return "not tested"
        if p >= PRELIMINARY:
            return "not significant"
        word = "better" if (self.difference > 0) == self.higher_is_better else "worse"
        return f"{word}, {'significant' if p < LEVEL else 'preliminary'}"


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of several results of one kind with the first, the reference.

    Attributes:
        kind: the kind of the results.
        names: distinct names of the results; tables call the reference A, the next one B, and so on.
        rows: the rows of each result but the reference.
        notes: caveats, one line each.
    """

    kind: Literal["tasks", "length"]
    names: tuple[str, ...]
    rows: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...]

    @property
    def is_tested(self) -> bool:
        """Whether any difference has a p."""
        return any(row.p is not None for rows in self.rows for row in rows)


def letter(number: int) -> str:
    """Return the letter of a result in tables, by its index from 0: A to Z, then A1 and so on."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def compare_tasks(results: Sequence[TaskResults]) -> Comparisons:
    """Compare evaluations with the first, item by item, and test each metric that they share.

    Items are paired by their hash. Accuracies are tested by McNemar's test, other metrics by a paired bootstrap-t; the
    items of a cluster count as one. Perplexities are tested by their losses and shown as a ratio, which is exp of the
    losses' difference. Holm's family consists of the first metric of each task in all comparisons. A group counts as
    one task, in place of its members.

    Raises:
        ConfigError: there is no common task; or the items, version, context length or few-shot examples of a task
            differ.
    """
    rows: list[Sequence[Row]] = []
    notes: list[str] = []
    for number, other in enumerate(results[1:], start=1):
        of_other, own_notes = _compared(results[0], other, letter(number))
        rows.append(of_other)
        notes += own_notes
    adjusted, n_tests = with_holm(rows)
    if n_tests > 1:
        n_others = len(results) - 1
        family = f"{n_tests} tasks, by the first metric of each" if n_others == 1 else f"{n_tests} tests in all"
        notes.append(f"Holm's p is adjusted for {family}.")
    return Comparisons("tasks", names_of([each.checkpoint for each in results]), adjusted, (*notes, CAVEAT))


def with_holm(rows: Sequence[Sequence[Row]]) -> tuple[tuple[tuple[Row, ...], ...], int]:
    """Adjust the p of all primary rows by Holm's method, and return the rows with the number of tests."""
    tests = [row.p for of_one in rows for row in of_one if row.primary and row.p is not None]
    adjusted = iter(holm(tests))
    return tuple(
        tuple(replace(row, p_holm=next(adjusted)) if row.primary and row.p is not None else row for row in of_one)
        for of_one in rows
    ), len(tests)


def _compared(a: TaskResults, b: TaskResults, of_b: str) -> tuple[list[Row], list[str]]:
    """Return the unadjusted rows of two evaluations, with notes that call them A and `of_b`."""
    tasks_b = {task.task: task for task in b.tasks}
    shared = [(task, tasks_b[task.task]) for task in a.tasks if task.task in tasks_b]
    if not shared:
        names = [", ".join(task.task for task in results.tasks) or "nothing" for results in (a, b)]
        raise ConfigError(
            f"no task is in both results: {names[0]} in the one, {names[1]} in the other; evaluate both on the same "
            "evaluation.tasks"
        )
    notes = differences(a, b, of_b)
    seeds = [results.fewshot_seed for results in (a, b)]
    pairs_of: dict[str, Pairs] = {}
    for task_a, task_b in shared:
        check_comparable(task_a, task_b, seeds, of_b)
        if not task_a.members:
            pairs_of[task_a.task], own_notes = paired_items(task_a, task_b, of_b)
            notes += own_notes
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
    """Return a row for each common metric of a group, over the common items of its tasks."""
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
    """Return a row for each common metric; unless all items are paired (`whole`), only for means over items.

    Args:
        tested: a function that returns a metric's values of A and B over the same items with their paired difference;
            None if the items don't suffice.
    """
    metrics_b = {metric.name: metric for metric in b.metrics if metric.subset is None}
    rows: list[Row] = []
    for metric in a.metrics:
        other = metrics_b.get(metric.name)
        if metric.subset is not None or other is None or other.kind != metric.kind:
            continue
        outcome = tested(metric) if metric.kind != "other" else None
        if outcome is None and whole:  # show the two values without a test
            change = Paired(other.value - metric.value, math.nan, math.nan, math.nan, "none")
            outcome = (metric.value, other.value), change
        if outcome is None:
            continue
        values, paired = outcome
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
    """Return a metric's values of A and B over the same items, with their paired difference or ratio."""
    name, kind = metric.name, metric.kind
    if not all(name in sample.scores for pair in pairs for sample in pair):
        raise ConfigError(f"{task}: the results lack {name} of some items: evaluate again")
    scores = np.asarray([(first.scores[name], second.scores[name]) for first, second in pairs], dtype=float)
    a, b = scores[:, 0], scores[:, 1]  # (item,), or (item, 2): log-likelihoods and their weights
    # If one file lacks the column that defines clusters, each of its items is its own cluster: use the other side's.
    both = [[sample.cluster for sample in side] for side in zip(*pairs, strict=True)]
    clusters = min(both, key=lambda side: len(set(side)))
    if kind == "mean":
        is_accuracy = np.isin(scores, (0, 1)).all()
        paired = paired_accuracy(a, b, clusters) if is_accuracy else paired_ratio(a, b, np.ones(len(a)), clusters)
        return (float(a.mean()), float(b.mean())), paired
    weights = a[:, 1]
    if not (weights == b[:, 1]).all():
        raise ConfigError(f"{task}: {name} weights the same items differently in A and B, so it can't be compared")
    losses = -a[:, 0], -b[:, 0]
    paired = paired_ratio(*losses, weights, clusters)
    value_a, value_b = (from_nats(loss.sum() / weights.sum(), kind) for loss in losses)
    difference, low, high = (from_nats(nats, kind) for nats in (paired.difference, paired.low, paired.high))
    return (value_a, value_b), replace(paired, difference=difference, low=low, high=high)


def names_of(checkpoints: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return distinct names: equal ones get the checkpoint's step, path or hash, or else a letter."""
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
    """Merge evaluations of the same checkpoint with the same dtype and few-shot examples, ordered by the last of each.

    If several contain the same task, the last one counts.
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

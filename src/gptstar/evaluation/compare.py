"""Two evaluations set against each other, item by item. B minus A throughout."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from gptstar.errors import ConfigError
from gptstar.evaluation.results import Kind, Metric, Sample, TaskResult, TaskResults
from gptstar.evaluation.statistics.paired import Paired, holm, paired_accuracy, paired_ratio

CAVEAT = (
    "This compares two checkpoints, not two recipes: each is one training run, and other seeds would differ too. "
    "The intervals and p are over the choice of items."
)

COLUMNS = ("task", "metric", "A", "B", "B − A or B / A", "95 % interval", "p", "Holm", "items")


@dataclass(frozen=True)
class Row:
    """One metric of one task, over the items that both have.

    Attributes:
        a, b: the metric over those items.
        difference: b - a.
        ratio: b / a, of perplexities only.
        low, high: of the 95 % interval of the ratio where there is one, else of the difference; None without interval.
        p: two-sided; None where the metric is no mean over items.
        p_holm: adjusted for the tasks; of each task's primary metric only.
        test: that p comes from.
        primary: the task's first metric that has a p: one a task, and these are Holm's family.
        items: in both.
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


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, and how they differ.

    Attributes:
        a, b: what to call them; never the same.
        notes: what a reader has to know, a line each; the last one is what such a comparison can't say.
    """

    a: str
    b: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: no NaN, None in its place."""
        tree = asdict(self)
        for row in tree["rows"]:
            for key, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    row[key] = None
        return tree


def compare(a: TaskResults, b: TaskResults) -> Comparison:
    """Pair two evaluations item by item, and test each metric they share.

    Items are paired by their hash. Accuracies have McNemar's test, and other metrics a paired bootstrap-t; items of one
    cluster count as one. Perplexities are tested by their losses and shown with their ratio,
    which is exp of the losses' difference. Holm's adjustment has one family: the first metric of each task.

    Raises:
        ConfigError: no task in both; a task whose items, version, context length or few-shot examples differ.
    """
    tasks_b = {task.task: task for task in b.tasks}
    shared = [(task, tasks_b[task.task]) for task in a.tasks if task.task in tasks_b]
    if not shared:
        raise ConfigError(f"no task is in both results: {_tasks(a)} in the one, {_tasks(b)} in the other")
    name_a, name_b = _names(a.checkpoint, b.checkpoint)
    notes = _differences(a, b)
    rows: list[Row] = []
    for task_a, task_b in shared:
        _check_comparable(task_a, task_b, a.protocol, b.protocol)
        pairs = _pairs(task_a.samples, task_b.samples)
        if not pairs:
            raise ConfigError(
                f"{task_a.task}: the results have no item in common ({len(task_a.samples):,} and "
                f"{len(task_b.samples):,} others): evaluate both on the same items"
            )
        left = (len(task_a.samples) - len(pairs), len(task_b.samples) - len(pairs))
        if any(left):
            notes.append(
                f"{task_a.task}: {len(pairs):,} items are in both, {left[0]:,} only in A, {left[1]:,} only in B."
            )
        rows += _rows(task_a, task_b, pairs, whole=not any(left))
    primaries = [number for number, row in enumerate(rows) if row.primary]
    adjusted = holm([p for number in primaries if (p := rows[number].p) is not None])
    for number, p in zip(primaries, adjusted, strict=True):
        rows[number] = replace(rows[number], p_holm=p)
    if len(primaries) > 1:
        notes.append(f"Holm's p is adjusted for {len(primaries)} tasks, by the first metric of each.")
    return Comparison(name_a, name_b, tuple(rows), (*notes, CAVEAT))


def comparison_table(comparison: Comparison) -> Table:
    """For the terminal."""
    notes = escape("\n".join(comparison.notes))
    table = Table(title=escape(_title(comparison)), caption=notes, caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for row in comparison.rows:
        table.add_row(*_cells(row))
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """The same as Markdown, without a newline at its end."""
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2)), *(_cells(row) for row in comparison.rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join((_title(comparison), table, *comparison.notes))


def _title(comparison: Comparison) -> str:
    return f"A: {comparison.a}, B: {comparison.b}"


def _cells(row: Row) -> tuple[str, ...]:
    digits = 4 if row.kind in ("mean", "bits_per_byte") else 2
    change = f"{row.difference:+.{digits}f}" if row.ratio is None else f"× {row.ratio:.3f}"
    form = f"+.{digits}f" if row.ratio is None else ".3f"
    interval = "" if row.low is None or row.high is None else f"{row.low:{form}} to {row.high:{form}}"
    better = "↑" if row.higher_is_better else "↓"
    p, adjusted = ("" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}" for p in (row.p, row.p_holm))
    figures = (f"{row.a:.{digits}f}", f"{row.b:.{digits}f}", change, interval)
    return row.task, f"{row.metric} {better}", *figures, p, adjusted, f"{row.items:,}"


def _rows(a: TaskResult, b: TaskResult, pairs: Sequence[tuple[Sample, Sample]], *, whole: bool) -> list[Row]:
    """A row for each metric that both have over all of their items.

    Args:
        whole: whether all items are paired; otherwise metrics that are no means over items are left out.
    """
    metrics_b = {metric.name: metric for metric in b.metrics if metric.subset is None}
    rows: list[Row] = []
    for metric in a.metrics:
        other = metrics_b.get(metric.name)
        if metric.subset is not None or other is None or other.kind != metric.kind:
            continue
        if metric.kind != "other":
            row = _row(a.task, metric, pairs)
            rows.append(replace(row, primary=row.p is not None and not any(each.primary for each in rows)))
        elif whole:  # the two figures, and nothing to test
            nothing = Paired(other.value - metric.value, math.nan, math.nan, math.nan, "none")
            rows.append(_filled(a.task, metric, (metric.value, other.value), nothing, len(pairs)))
    return rows


def _row(task: str, metric: Metric, pairs: Sequence[tuple[Sample, Sample]]) -> Row:
    name, kind = metric.name, metric.kind
    if not all(name in sample.scores for pair in pairs for sample in pair):
        raise ConfigError(f"{task}: the results lack {name} of some items: evaluate again")
    scores = np.asarray([(first.scores[name], second.scores[name]) for first, second in pairs], dtype=float)
    a, b = scores[:, 0], scores[:, 1]  # (item,), or (item, 2): log-likelihoods, and what they are per
    # Of a file without what tells clusters each item is its own: the other side knows better.
    clusters = min(
        ([each.cluster for each in side] for side in zip(*pairs, strict=True)), key=lambda side: len(set(side))
    )
    if kind == "mean":
        accuracy = np.isin(scores, (0, 1)).all()
        found = paired_accuracy(a, b, clusters) if accuracy else paired_ratio(a, b, np.ones(len(a)), clusters)
        return _filled(task, metric, (a.mean(), b.mean()), found, len(pairs))
    weights = a[:, 1]
    if not (weights == b[:, 1]).all():
        raise ConfigError(f"{task}: {name} weighs the same items differently in A and B, so it can't be compared")
    found = paired_ratio(-a[:, 0], -b[:, 0], weights, clusters)
    with np.errstate(over="ignore"):
        shown = np.exp if kind == "perplexity" else _bits
        figures = [shown(-each[:, 0].sum() / weights.sum()) for each in (a, b)]
        difference, low, high = (float(shown(nats)) for nats in (found.difference, found.low, found.high))
    found = replace(found, difference=difference, low=low, high=high)
    return _filled(task, metric, figures, found, len(pairs))


def _bits(nats: Any) -> Any:
    return nats / math.log(2)


def _filled(task: str, metric: Metric, values: Sequence[float], found: Paired, items: int) -> Row:
    a, b = (float(value) for value in values)
    low, high, p = (None if math.isnan(number) else number for number in (found.low, found.high, found.p))
    ratio = found.difference if metric.kind == "perplexity" else None
    return Row(
        task, metric.name, metric.kind, metric.higher_is_better, a, b, b - a, ratio, low, high, p, None, found.test,
        primary=False, items=items,
    )  # fmt: skip


def _pairs(a: Sequence[Sample], b: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """The same items in both, in A's order; of equal items the first with the first, and so on."""

    def keyed(samples: Sequence[Sample]) -> dict[tuple[str, int], Sample]:
        seen: Counter[str] = Counter()
        found = {}
        for sample in sorted(samples, key=lambda sample: sample.item):
            found[sample.hash, seen[sample.hash]] = sample
            seen[sample.hash] += 1
        return found

    others = keyed(b)
    return [(sample, others[key]) for key, sample in keyed(a).items() if key in others]


def _check_comparable(a: TaskResult, b: TaskResult, protocol_a: dict[str, Any], protocol_b: dict[str, Any]) -> None:
    cures = {"version": "evaluate both with the same lm-eval"}
    for key in ("version", "context_length", "num_fewshot"):
        first, second = getattr(a, key), getattr(b, key)
        if first != second:
            cure = cures.get(key, f"evaluate both with the same evaluation.{key}")
            raise ConfigError(f"{a.task} can't be compared: its {key} is {first} in A and {second} in B: {cure}")
    seeds = [(protocol.get("seeds") or {}).get("fewshot") for protocol in (protocol_a, protocol_b)]
    if a.num_fewshot > 0 and seeds[0] != seeds[1]:
        raise ConfigError(
            f"{a.task} can't be compared: its examples were drawn with seed {seeds[0]} in A and {seeds[1]} in B: "
            "evaluate both with the same evaluation.seed"
        )


def _differences(a: TaskResults, b: TaskResults) -> list[str]:
    """What differs and leaves scores comparable, a line each."""
    notes = []
    for mine, theirs, name in ((a, b, "A"), (b, a, "B")):
        only = [task.task for task in mine.tasks if task.task not in {task.task for task in theirs.tasks}]
        if only:
            notes.append(f"Only in {name}: {', '.join(only)}.")
    pairs = [("dtype", a.protocol.get("dtype"), b.protocol.get("dtype"))]
    pairs.append(("lm-eval", a.versions.get("lm-eval"), b.versions.get("lm-eval")))
    notes += [f"{what} is {first} in A and {second} in B." for what, first, second in pairs if first != second]
    if a.checkpoint.get("sha256") and a.checkpoint["sha256"] == b.checkpoint.get("sha256"):
        notes.append("A and B are the same checkpoint.")
    return notes


def _names(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, str]:
    """Names that differ: by step, place or content where the checkpoints' own don't, by letter at last."""
    names = tuple(str(who.get("name") or "unnamed") for who in (a, b))
    if names[0] != names[1]:
        return names[0], names[1]
    for key in ("step", "path", "sha256"):
        marks = tuple(str(who.get(key) or "")[: 8 if key == "sha256" else None] for who in (a, b))
        if all(marks) and marks[0] != marks[1]:
            text = "step " if key == "step" else ""
            return f"{names[0]} ({text}{marks[0]})", f"{names[1]} ({text}{marks[1]})"
    return f"{names[0]} (A)", f"{names[1]} (B)"


def _tasks(results: TaskResults) -> str:
    return ", ".join(task.task for task in results.tasks) or "nothing"

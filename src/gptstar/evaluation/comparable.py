"""Checks that two evaluations are comparable, and the pairing of their items."""

from collections import defaultdict
from collections.abc import Sequence

from gptstar.errors import ConfigError
from gptstar.evaluation.results import Sample, TaskResult, TaskResults

Pairs = list[tuple[Sample, Sample]]
"""Pairs of items of A and B with the same content."""


def paired_items(a: TaskResult, b: TaskResult, of_b: str) -> tuple[Pairs, list[str]]:
    """Pair the items of a task that both results have, and add a note if one has further items.

    Raises:
        ConfigError: the results have no item in common.
    """
    pairs = _pairs(a.samples, b.samples)
    if not pairs:
        raise ConfigError(
            f"{a.task}: the results have no item in common ({len(a.samples):,} and {len(b.samples):,} others): "
            "evaluate both on the same items"
        )
    only_a, only_b = len(a.samples) - len(pairs), len(b.samples) - len(pairs)
    if not only_a and not only_b:
        return pairs, []
    return pairs, [f"{a.task}: {len(pairs):,} items are in both, {only_a:,} only in A, {only_b:,} only in {of_b}."]


def _pairs(a: Sequence[Sample], b: Sequence[Sample]) -> Pairs:
    """Pair the items that both have, in A's order; duplicates are paired in order of their occurrence."""
    others = defaultdict(list)
    for sample in sorted(b, key=lambda sample: -sample.item):
        others[sample.hash].append(sample)  # reversed, so that pop() returns the first
    in_order = sorted(a, key=lambda sample: sample.item)
    return [(sample, others[sample.hash].pop()) for sample in in_order if others[sample.hash]]


def check_comparable(a: TaskResult, b: TaskResult, seeds: Sequence[object], of_b: str) -> None:
    """Check that two results on a task were measured in the same way.

    Args:
        a, b: the results.
        seeds: the seeds of A's and B's few-shot examples.
        of_b: the letter of the second result in messages.

    Raises:
        ConfigError: a setting differs; the message names it, and the fix.
    """
    facts: list[tuple[str, object, object, str]] = [
        ("version", a.version, b.version, "lm-eval"),
        ("context_length", a.context_length, b.context_length, "evaluation.context_length"),
        ("num_fewshot", a.num_fewshot, b.num_fewshot, "evaluation.num_fewshot"),
        ("gen_kwargs", a.gen_kwargs, b.gen_kwargs, "evaluation.gen_kwargs"),
        ("list of tasks", sorted(a.members), sorted(b.members), "members of the group"),
        ("weighting of tasks", a.by_size, b.by_size, "lm-eval"),
    ]
    if a.num_fewshot > 0:
        facts.append(("few-shot seed", seeds[0], seeds[1], "evaluation.seed"))
    for name, first, second, cure in facts:
        if first != second:
            values = f"{first} in A and {second} in {of_b}"
            raise ConfigError(f"{a.task} can't be compared: its {name} is {values}: evaluate both with the same {cure}")


def differences(a: TaskResults, b: TaskResults, of_b: str) -> list[str]:
    """Return a line for each difference that leaves scores comparable."""
    notes = []
    tasks_a, tasks_b = ([task.task for task in results.tasks] for results in (a, b))
    for name, mine, theirs in (("A", tasks_a, tasks_b), (of_b, tasks_b, tasks_a)):
        if only := [task for task in mine if task not in theirs]:
            notes.append(f"Only in {name}: {', '.join(only)}.")
    for name, first, second in (("dtype", a.protocol, b.protocol), ("lm-eval", a.versions, b.versions)):
        if first.get(name) != second.get(name):
            notes.append(f"{name} is {first.get(name)} in A and {second.get(name)} in {of_b}.")
    if a.checkpoint.get("sha256") and a.checkpoint["sha256"] == b.checkpoint.get("sha256"):
        notes.append(f"A and {of_b} are the same checkpoint.")
    if a.protocol.get("metadata") != b.protocol.get("metadata"):
        values = [each.protocol.get("metadata") or "none" for each in (a, b)]
        notes.append(f"evaluation.metadata is {values[0]} in A and {values[1]} in {of_b}.")
    return notes

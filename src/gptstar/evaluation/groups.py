"""Items of a group of tasks, and how two models differ on them."""

from collections.abc import Sequence

import numpy as np

from gptstar.evaluation.comparable import Pairs
from gptstar.evaluation.results import Kind, Metric, Sample, from_nats
from gptstar.evaluation.statistics.paired import Paired, paired_ratio
from gptstar.evaluation.statistics.strata import Stratum, pooled

Tested = tuple[tuple[float, float], Paired]
"""A metric of A and of B, and how they differ."""


def strata_of(name: str, kind: Kind, members: Sequence[Sequence[Sample]], *, by_size: bool) -> list[Stratum]:
    """The items of a group's tasks, each task a stratum, whose weighted mean of ratios is the group's metric in nats.

    Args:
        kind: of the metric: `mean` or `bits_per_byte`.
        members: items of the tasks that have the metric.
        by_size: whether a task weighs as much as it has items.
    """
    strata = []
    for samples in members:
        scores = np.asarray([sample.scores[name] for sample in samples], dtype=float)
        x, w = (scores, np.ones(len(scores))) if kind == "mean" else (-scores[:, 0], scores[:, 1])
        clusters, keys = [sample.cluster for sample in samples], [sample.hash for sample in samples]
        strata.append(Stratum(x, w, clusters, keys, float(len(samples)) if by_size else 1.0))
    return strata


def compared_group(metric: Metric, members: Sequence[Pairs], *, by_size: bool) -> Tested | None:
    """A group's metric of A and of B over the same items, and how they differ: by a paired bootstrap-t within tasks.

    Args:
        members: items of the tasks that have the metric, paired.

    Returns:
        None where the items can't tell: a task has a single one.
    """
    sides = [[[pair[side] for pair in pairs] for pairs in members] for side in (0, 1)]
    first, second = (pooled(strata_of(metric.name, metric.kind, side, by_size=by_size)) for side in sides)
    if first is None or second is None:
        return None
    (a, clusters), (b, others) = first, second
    clusters = min(clusters, others, key=lambda side: len(set(side)))
    paired = paired_ratio(a, b, np.ones(len(a)), clusters)
    values = float(a.mean()), float(b.mean())
    if metric.kind == "mean":
        return values, paired
    in_bits = [from_nats(nats, metric.kind) for nats in (*values, paired.difference, paired.low, paired.high)]
    return (in_bits[0], in_bits[1]), Paired(in_bits[2], in_bits[3], in_bits[4], paired.p, paired.test)

"""The comparison of two models on a group of tasks."""

from collections.abc import Sequence

import numpy as np

from gptstar.evaluation.comparable import Pairs
from gptstar.evaluation.results import Kind, Metric, Sample, from_nats
from gptstar.evaluation.statistics.paired import Paired, paired_ratio
from gptstar.evaluation.statistics.strata import Stratum, pooled

Tested = tuple[tuple[float, float], Paired]
"""A metric's values of A and B, and their paired difference."""


def strata_of(name: str, kind: Kind, members: Sequence[Sequence[Sample]], *, by_size: bool) -> list[Stratum]:
    """Return one stratum per task; the weighted mean of the strata's ratios is the group's metric in nats.

    Args:
        name: the name of the metric.
        kind: the kind of the metric: `mean` or `bits_per_byte`.
        members: the items of the tasks that have the metric.
        by_size: whether tasks are weighted by their number of items.
    """
    strata = []
    for samples in members:
        scores = np.asarray([sample.scores[name] for sample in samples], dtype=float)
        x, w = (scores, np.ones(len(scores))) if kind == "mean" else (-scores[:, 0], scores[:, 1])
        clusters, keys = [sample.cluster for sample in samples], [sample.hash for sample in samples]
        strata.append(Stratum(x, w, clusters, keys, float(len(samples)) if by_size else 1.0))
    return strata


def compared_group(metric: Metric, members: Sequence[Pairs], *, by_size: bool) -> Tested | None:
    """Compare a group's metric of A and B over the same items, by a paired bootstrap-t within tasks.

    Args:
        metric: the group's metric.
        members: the paired items of the tasks that have the metric.
        by_size: whether tasks are weighted by their number of items.

    Returns:
        The values of A and B with their difference; None if a task has a single item.
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

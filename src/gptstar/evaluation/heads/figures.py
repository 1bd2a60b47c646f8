"""The figures of a study of heads, computed from sums over queries, with predictions by arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gptstar.evaluation.heads.prediction import Reach
from gptstar.evaluation.heads.sums import Sums
from gptstar.evaluation.statistics.intervals import Interval, ratio_interval

RESAMPLES = 1_999
"""Bootstrap resamples of an interval: fewer than elsewhere, as there are two intervals for each head and length."""


@dataclass(frozen=True)
class HeadResult:
    """The figures of one head at one context length.

    Attributes:
        layer, head: counted from 1.
        beyond: share of the weight at distances of the training context and more; None where no token is so far away.
        first: share of the weight on the window's first token.
        mean_distance: the mean distance in tokens, weighted by the attention weights.
        tails: share of the weight at the distance of each edge or farther.
        reach: the farthest distance at which a weight is not zero.
        felt: the farthest distance at which a weight is at least 2^-24.
        is_blind: whether every weight beyond the training context is zero; None where no token is so far away.
        misses_first: whether every weight on the window's first token is zero.
        predicted_blind, predicted_to_miss_first: predictions of these two; None with neither slopes nor a window.
    """

    layer: int
    head: int
    beyond: Interval | None
    first: Interval
    mean_distance: float
    tails: tuple[float, ...]
    reach: int
    felt: int
    is_blind: bool | None
    misses_first: bool
    predicted_blind: bool | None
    predicted_to_miss_first: bool | None


@dataclass(frozen=True)
class HeadsResult:
    """The figures of all heads at one context length.

    Attributes:
        queries: the number of queries whose weights were measured.
        edges: distances in tokens, two per doubling.
        seconds, memory: the time of reading, and the peak memory in bytes.
        heads: the heads, ordered by layer and number; empty if the model is undefined at this length.
    """

    context_length: int
    queries: int
    edges: tuple[int, ...]
    seconds: float | None = None
    memory: int | None = None
    heads: tuple[HeadResult, ...] = ()


def head_results(
    sums: Sums, units: np.ndarray, reaches: Sequence[Reach] | None, trained_at: int, length: int, seed: int
) -> tuple[HeadResult, ...]:
    """Compute the figures of heads from sums.

    Args:
        sums: the sums at this length.
        units: `(window,)`, int64: the independent unit of text that each window belongs to.
        reaches: how far each head can see; None if neither a slope nor a window limits it.
        trained_at: the training context.
        length: the context length, in tokens.
    """
    counts = np.bincount(units) * sums.n_queries
    n_queries = int(counts.sum())
    _, n_layers, n_heads = sums.beyond.shape
    can_see = length > trained_at  # whether a token is as far away as the training context is long

    def share(of_windows: np.ndarray) -> Interval:
        by_unit = np.bincount(units, of_windows, minlength=len(counts))
        used = counts > 0
        interval = ratio_interval(by_unit[used], counts[used], seed=seed, n_resamples=RESAMPLES)
        return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))  # NaN stays

    return tuple(
        HeadResult(
            layer=layer + 1,
            head=head + 1,
            beyond=share(sums.beyond[:, layer, head]) if can_see else None,
            first=share(sums.first[:, layer, head]),
            mean_distance=float(sums.distance[:, layer, head].sum() / n_queries),
            tails=tuple((sums.tails[layer, head] / n_queries).tolist()),
            reach=int(sums.reach[layer, head]),
            felt=int(sums.felt[layer, head]),
            is_blind=bool(sums.most_beyond[layer, head] == 0) if can_see else None,
            misses_first=bool(sums.most_first[layer, head] == 0),
            predicted_blind=None
            if reaches is None or not can_see
            else reaches[head].is_blind(trained_at, length, sums.n_queries),
            predicted_to_miss_first=None if reaches is None else reaches[head].misses_first(length, sums.n_queries),
        )
        for layer in range(n_layers)
        for head in range(n_heads)
    )

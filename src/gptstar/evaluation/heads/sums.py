"""Sums of attention weights over queries, by window, layer and head."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptstar.evaluation.heads.prediction import ROUNDING
from gptstar.model import GPT
from gptstar.model.attention import Attention
from gptstar.model.positions.base import Pairs

LEAST_FELT = float(np.exp(-ROUNDING))
"""2^-24: a smaller weight changes no float32 sum of the size of 1."""


class Sums:
    """The attention weights of the measured queries, summed, at one context length.

    Attributes:
        edges: the distances of `tails`, in tokens.
        n_queries: the number of queries in each window.
        beyond, first, distance: `(window, layer, head)`, float64: sums over queries of the weight at distances of the
            training context and more, of the weight on the window's first token, and of the mean distance.
        tails: `(layer, head, edge)`: sums over all queries of the weight at each edge's distance and farther.
        most_beyond, most_first: `(layer, head)`: the largest of these weights of any query.
        reach, felt: `(layer, head)`, int64: the farthest distance at which any query has a weight above zero, and a
            weight of at least `LEAST_FELT`.
    """

    def __init__(self, n_windows: int, n_queries: int, model: GPT, trained_at: int, edges: Sequence[int]) -> None:
        heads = (model.config.n_layers, model.config.n_heads)
        self.edges, self.n_queries, self._trained_at = tuple(edges), n_queries, trained_at
        self.beyond, self.first, self.distance = (np.zeros((n_windows, *heads)) for _ in range(3))
        self.tails = np.zeros((*heads, len(edges)))
        self.most_beyond, self.most_first = np.zeros(heads), np.zeros(heads)
        self.reach, self.felt = np.zeros(heads, dtype=np.int64), np.zeros(heads, dtype=np.int64)

    def add(self, windows: slice, layer: int, pairs: Pairs, weights: Tensor) -> None:
        """Add the weights of some queries of a batch of windows: `(window, head, query, key)`."""
        queries, keys = pairs.queries[0], pairs.keys[0]
        wide = weights.double()
        up_to = wide.cumsum(-1)  # the weight of all tokens up to each
        beyond = _tail(up_to, queries, [self._trained_at])[..., 0]
        first = wide[..., 0]
        distances = (queries[:, None] - keys).double()
        self.beyond[windows, layer] += _numpy(beyond.sum(2))
        self.first[windows, layer] += _numpy(first.sum(2))
        self.distance[windows, layer] += _numpy((wide * distances).sum((2, 3)))
        self.tails[layer] += _numpy(_tail(up_to, queries, self.edges).sum((0, 2)))
        for most, values in ((self.most_beyond, beyond), (self.most_first, first)):
            most[layer] = np.maximum(most[layer], _numpy(values.amax((0, 2))))
        for farthest, has_weight in ((self.reach, weights > 0), (self.felt, weights >= LEAST_FELT)):
            first_key = has_weight.to(torch.uint8).argmax(-1)  # keys are in their order: the first is the farthest
            farthest[layer] = np.maximum(farthest[layer], _numpy((queries - first_key).amax((0, 2))))


def _tail(up_to: Tensor, queries: Tensor, edges: Sequence[int]) -> Tensor:
    """Return the weight at the distance of each edge or farther: `(window, head, query, edge)`.

    Args:
        up_to: `(window, head, query, key)`: the total weight of all tokens up to a key.
        queries: `(query,)`: the positions of the queries; the keys are at all positions from 0 on.
        edges: the distances, in tokens.
    """
    at = queries[:, None] - torch.tensor(edges, device=queries.device)  # (query, edge)
    row = torch.arange(len(queries), device=queries.device)[:, None]
    return torch.where(at >= 0, up_to[:, :, row, at.clamp(min=0)], 0.0)


def _numpy(values: Tensor) -> Any:
    return values.cpu().numpy()


@contextlib.contextmanager
def summing(model: GPT, sums: Sums, windows: slice) -> Iterator[None]:
    """Add the weights of every layer to the sums while the model reads these windows within the context."""

    def watch(layer: int) -> Any:
        def before(module: nn.Module, given: tuple[Any, ...]) -> None:
            assert isinstance(module, Attention)
            x: Tensor = given[0]
            for pairs, weights in module.weights(x, x.shape[1] - sums.n_queries):
                sums.add(windows, layer, pairs, weights)

        return before

    layers = [module for module in model.modules() if isinstance(module, Attention)]
    handles = [module.register_forward_pre_hook(watch(layer)) for layer, module in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

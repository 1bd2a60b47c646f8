"""Attention masks for shared prefixes and KV caching."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from gptstar.model.positions import slopes_on


class Cache:
    """Keys and values of each attention layer, for tokens that were read before. For inference only.

    The cache keeps tokens in the order in which it gets them. `View` holds their positions and the mask.

    Args:
        capacity: tokens of a row to allocate memory for. When more tokens come, the memory doubles.
        dtype: the type to keep them in; by default their own.
    """

    def __init__(self, capacity: int = 0, dtype: torch.dtype | None = None) -> None:
        self._capacity, self._dtype = capacity, dtype
        self._memory: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # (batch, head, capacity, d_head) each
        self._lengths: dict[nn.Module, int] = {}

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's keys and values `(batch, head, position, d_head)`, and return all of them, as views."""
        start = self._lengths.get(layer, 0)
        stop = start + key.shape[2]
        if layer not in self._memory:
            self._memory[layer] = self._allocate(key, stop), self._allocate(value, stop)
        elif stop > (full := self._memory[layer][0].shape[2]):
            past, size = self._memory[layer], max(stop, 2 * full)
            self._memory[layer] = self._allocate(key, size), self._allocate(value, size)
            for grown, old in zip(self._memory[layer], past, strict=True):
                grown[:, :, :start] = old[:, :, :start]
        keys, values = self._memory[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = key, value
        self._lengths[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def _allocate(self, like: Tensor, n_tokens: int) -> Tensor:
        batch, n_heads, _, d_head = like.shape
        size = (batch, n_heads, max(n_tokens, self._capacity), d_head)
        return torch.empty(size, dtype=self._dtype or like.dtype, device=like.device)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch: `(row,)`, int64."""
        for layer, memory in self._memory.items():
            length = self._lengths[layer]
            for each in memory:  # in place, and only what is in use
                each[: len(rows), :, :length] = each[rows, :, :length]
            self._memory[layer] = memory[0][: len(rows)], memory[1][: len(rows)]


@dataclass(frozen=True, eq=False)
class View:
    """Positions of tokens, and the mask that says which keys each query attends to.

    Attributes:
        queries: `(batch, query)`, int64: the position of each token that is read now; a batch of one if all rows have
            the same positions.
        keys: `(batch, key)`, int64: the position of each key: those in the cache, then those read now.
        seen: `(batch, query, key)`, bool: the attention mask; each query attends to at least one key. None means that
            each query attends to all keys that do not stand after it.
        cache: keys and values of the tokens read before; the layers add those read now.
        wanted: `(batch, wanted)`, int64: the tokens read now whose output is needed; None means all. With `wanted`,
            `seen` is `(batch, wanted, key)`.
        length: positions that the queries need, if the caller knows it: to read it off a GPU is to wait for it.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor | None = None
    cache: Cache | None = None
    wanted: Tensor | None = None
    length: int | None = None
    _masks: dict[tuple[float, ...] | None, Tensor | None] = field(default_factory=dict)

    @property
    def asking(self) -> Tensor:
        """Positions of the tokens whose output is needed: `(batch, query)`, or `(batch, wanted)`."""
        return self.queries if self.wanted is None else self.queries.expand(len(self.wanted), -1).gather(1, self.wanted)

    @property
    def is_causal(self) -> bool:
        """Whether these are sequences read from their beginnings, and all of their output is needed."""
        return self.seen is None and self.wanted is None and self.queries.shape == self.keys.shape

    def of(self, wanted: Tensor) -> "View":
        """The same view for a block that computes the output of some tokens only: `(batch, wanted)`, int64."""
        seen = self.seen
        if seen is not None:
            seen = seen.expand(len(wanted), -1, -1).gather(1, wanted[..., None].expand(-1, -1, seen.shape[2]))
        return replace(self, seen=seen, wanted=wanted, _masks={})

    def mask(self, slopes: tuple[float, ...] | None) -> Tensor | None:
        """The attention mask, computed once for all layers.

        Returns:
            With ALiBi's slopes a bias `(batch, head, query, key)`, float32: `-slope * distance`, and `-inf` where a
            query does not attend to a key. Without slopes `(batch, 1, query, key)`, bool, or None if each query attends
            to all keys.
        """
        if slopes not in self._masks:
            asking, keys = self.asking[:, None, :, None], self.keys[:, None, None, :]
            mask = None if self.seen is None else self.seen[:, None]
            if self.seen is None and (self.wanted is not None or self.queries.shape[1] > 1):
                mask = asking >= keys  # a token that is read by itself stands after all others
            if slopes is not None:
                by_head = slopes_on(keys.device, len(slopes))[:, None, None]
                bias = -by_head * (asking - keys)
                mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
            self._masks[slopes] = mask
        return self._masks[slopes]


Scope = Tensor | BlockMask | View
"""A restriction of attention: the documents `(batch, position)` that positions belong to, or a view."""


def causal_view(n_positions: int, wanted: Tensor) -> View:
    """A view of sequences read from their beginnings that asks for the output of some tokens only.

    Args:
        wanted: `(batch, wanted)`, int64.
    """
    positions = torch.arange(n_positions, device=wanted.device)[None]
    return View(positions, positions, wanted=wanted)


def select_queries(x: Tensor, scope: Scope | None) -> Tensor:
    """Select the tokens of `(batch, position, …)` whose output is needed: all, unless a view says which."""
    if not isinstance(scope, View) or scope.wanted is None:
        return x
    return x.gather(1, scope.wanted[..., None].expand(-1, -1, x.shape[2]))

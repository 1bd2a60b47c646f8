"""Attention masks for shared prefixes and KV caching."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from gptstar.model.positions.base import Bias, Pairs, Positions


class Cache:
    """Keys, values and what else each attention layer keeps of tokens that were read before. For inference only.

    The cache keeps tokens in the order in which it gets them. `View` holds their positions and the mask.

    Args:
        capacity: tokens of a row to allocate memory for. When more tokens come, the memory doubles.
        dtype: the type to keep keys and values in; by default their own, as that of what else is kept.
    """

    def __init__(self, capacity: int = 0, dtype: torch.dtype | None = None) -> None:
        self._capacity, self._dtype = capacity, dtype
        self._memory: dict[nn.Module, list[Tensor]] = {}  # (batch, head, capacity, width) each
        self._lengths: dict[nn.Module, int] = {}

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Add a layer's keys, values and what else it keeps of tokens, and return all of each, as views.

        Args:
            key: `(batch, head, position, width)`; the others likewise.
        """
        start = self._lengths.get(layer, 0)
        stop, parts = start + key.shape[2], (key, value, *more)
        past = self._memory.get(layer)
        if past is None or stop > past[0].shape[2]:
            size = stop if past is None else max(stop, 2 * past[0].shape[2])
            dtypes = (self._dtype, self._dtype, *(None for _ in more))
            self._memory[layer] = [
                self._allocate(part, size, dtype or part.dtype) for part, dtype in zip(parts, dtypes, strict=True)
            ]
            for grown, old in zip(self._memory[layer], past or (), strict=past is not None):
                grown[:, :, :start] = old[:, :, :start]
        for memory, part in zip(self._memory[layer], parts, strict=True):
            memory[:, :, start:stop] = part
        self._lengths[layer] = stop
        return tuple(memory[:, :, :stop] for memory in self._memory[layer])

    def _allocate(self, like: Tensor, n_tokens: int, dtype: torch.dtype) -> Tensor:
        batch, n_heads, _, width = like.shape
        size = (batch, n_heads, max(n_tokens, self._capacity), width)
        return torch.empty(size, dtype=dtype, device=like.device)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch: `(row,)`, int64."""
        for layer, memory in self._memory.items():
            length = self._lengths[layer]
            for each in memory:  # in place, and only what is in use
                each[: len(rows), :, :length] = each[rows, :, :length]
            self._memory[layer] = [each[: len(rows)] for each in memory]


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
    _masks: dict[Positions | None, Tensor | None] = field(default_factory=dict)

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

    def mask(self) -> Tensor | None:
        """The attention mask, `(batch or 1, query, key)`, bool; None if each query attends to all keys."""
        if self.seen is not None or (self.wanted is None and self.queries.shape[1] == 1):
            return self.seen  # a token that is read by itself stands after all others
        if None not in self._masks:
            self._masks[None] = self.asking[:, :, None] >= self.keys[:, None]
        return self._masks[None]

    def biased(self, bias: Bias, shared_by: Positions | None) -> Tensor:
        """The attention mask as a bias, `(batch or 1, head, query, key)`, float32: `-inf` where it hides a key.

        Args:
            bias: what else is added to scores.
            shared_by: the positions that give it, if it is the same in all layers: then it is computed once.
        """
        found = self._masks.get(shared_by) if shared_by is not None else None
        if found is None:
            mask = self.mask()
            found = bias(Pairs(self.asking, self.keys, mask))
            found = found if mask is None else found.masked_fill(~mask[:, None], -torch.inf)
            if shared_by is not None:
                self._masks[shared_by] = found
        return found


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

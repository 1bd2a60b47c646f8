"""Attention masks for shared prefixes and KV caching."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from gptstar.model.mask import Mask
from gptstar.model.positions.base import Bias, Pairs, Positions


class Cache:
    """Keys, values and what else each attention layer keeps of the tokens read before. For inference only.

    The cache keeps tokens in the order in which it gets them. `View` holds their positions and the mask.

    Args:
        capacity: tokens of a row to allocate memory for. When more tokens come, the memory doubles.
        dtype: the type of keys and values in memory; by default their own. Anything else keeps its own type.
    """

    def __init__(self, capacity: int = 0, dtype: torch.dtype | None = None) -> None:
        self._capacity, self._dtype = capacity, dtype
        self._memory: dict[nn.Module, list[Tensor]] = {}  # (batch, head, capacity, width) each
        self._lengths: dict[nn.Module, int] = {}

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Add what a layer keeps of new tokens, and return what it has of all tokens, as views of the memory.

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
        mask: `(batch, query, key)`, bool: the attention mask; each query attends to at least one key. None means that
            each query attends to all keys that do not stand after it. With `selected` it is `(batch, selected, key)`.
        cache: keys and values of the tokens read before; the layers add those read now.
        length: positions that the queries need, if the caller knows it: to read it off a GPU is to wait for it.
        selected: `(batch, selected)`, int64: the tokens read now whose output is needed; None means all.
        within: what further hides keys, by their positions; None means nothing.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None = None
    cache: Cache | None = None
    length: int | None = None
    selected: Tensor | None = None
    within: Mask | None = None
    _masks: dict[Positions | str, Tensor] = field(default_factory=dict)

    def under(self, mask: Mask) -> "View":
        """Return the same view with the keys hidden that a mask hides."""
        return self if mask.window is None or mask == self.within else replace(self, within=mask, _masks={})

    def select(self, selected: Tensor) -> "View":
        """Return the same view for a block that computes the output of some tokens only: `(batch, selected)`, int64."""
        mask = self.mask
        if mask is not None:
            mask = mask.expand(len(selected), -1, -1).gather(1, selected[..., None].expand(-1, -1, mask.shape[2]))
        return replace(self, mask=mask, selected=selected, _masks={})

    @property
    def selected_positions(self) -> Tensor:
        """Positions of the tokens whose output is needed: `(batch, query)`, or `(batch, selected)`."""
        if self.selected is None:
            return self.queries
        return self.queries.expand(len(self.selected), -1).gather(1, self.selected)

    @property
    def n_positions(self) -> int:
        """Positions that the queries need."""
        return self.length if self.length is not None else int(self.queries.max()) + 1

    @property
    def is_causal(self) -> bool:
        """Whether these are sequences read from their beginnings, and all of their output is needed."""
        return self.mask is None and self.selected is None and self.queries.shape == self.keys.shape

    def text_mask(self) -> Tensor | None:
        """Return which keys belong to the text of a query, and do not stand after it, as `attention_mask` does."""
        if self.mask is not None or (self.selected is None and self.queries.shape[1] == 1):
            return self.mask  # a token that is read by itself stands after all others
        if "text" not in self._masks:
            self._masks["text"] = self.selected_positions[:, :, None] >= self.keys[:, None]
        return self._masks["text"]

    def attention_mask(self) -> Tensor | None:
        """Return the attention mask, `(batch or 1, query, key)`, bool; None if each query attends to all keys."""
        mask = self.text_mask()
        if self.within is None:
            return mask
        if "within" not in self._masks:
            visible = self.within.visible(self.selected_positions, self.keys)
            self._masks["within"] = visible if mask is None else visible & mask
        return self._masks["within"]

    def n_visible(self) -> Tensor:
        """Count the keys that each query attends to: `(batch or 1, query)`, int64."""
        if "count" not in self._masks:
            mask = self.attention_mask()
            self._masks["count"] = self.keys.new_full((1, 1), self.keys.shape[1]) if mask is None else mask.sum(-1)
        return self._masks["count"]

    def biased_mask(self, bias: Bias, shared_by: Positions | None) -> Tensor:
        """Return bias and attention mask together: `(batch or 1, head, query, key)`, float32, `-inf` at hidden keys.

        Args:
            bias: what else is added to scores.
            shared_by: the positions that give the bias, if it is the same in all layers: then it is computed once.
        """
        if shared_by is not None and shared_by in self._masks:
            return self._masks[shared_by]
        mask = self.attention_mask()
        biased = bias(Pairs(self.selected_positions, self.keys, self.text_mask()))
        if mask is not None:
            biased = biased.masked_fill(~mask[:, None], -torch.inf)
        if shared_by is not None:
            self._masks[shared_by] = biased
        return biased


@dataclass(frozen=True, eq=False)
class SharedMask:
    """FlexAttention's mask, with the documents `(batch, position)` that it was made of."""

    blocks: BlockMask
    documents: Tensor


Scope = Tensor | BlockMask | SharedMask | View
"""A restriction of attention: the documents `(batch, position)` that positions belong to, or a view."""


def select_queries(x: Tensor, scope: Scope | None) -> Tensor:
    """Select the tokens of `(batch, position, …)` whose output is needed: all, unless a view selects some."""
    if not isinstance(scope, View) or scope.selected is None:
        return x
    return x.gather(1, scope.selected[..., None].expand(-1, -1, x.shape[2]))

"""Attention masks for shared prefixes and KV caching."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from gptstar.model.mask import Mask
from gptstar.model.positions.base import Bias, Pairs, Positions


class Cache:
    """The KV cache: keys, values and further per-token tensors of each attention layer. For inference only.

    The cache keeps tokens in the order of their arrival. `View` holds their positions and the attention mask.

    Args:
        capacity: tokens per row to allocate memory for. When more tokens come, the memory doubles.
        dtype: the type in which keys and values are stored, by default their own; other tensors keep their type.
    """

    def __init__(self, capacity: int = 0, dtype: torch.dtype | None = None) -> None:
        self._capacity, self._dtype = capacity, dtype
        self._memory: dict[nn.Module, list[Tensor]] = {}  # (batch, head, capacity, width) each
        self._lengths: dict[nn.Module, int] = {}

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Add a layer's tensors of new tokens, and return those of all tokens, as views of the memory.

        Args:
            key: `(batch, head, position, width)`; `value` and `more` have the same axes.
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
        """Keep only the given rows of the batch, `(row,)`, int64, in that order."""
        for layer, memory in self._memory.items():
            length = self._lengths[layer]
            for each in memory:  # in place, and only what is in use
                each[: len(rows), :, :length] = each[rows, :, :length]
            self._memory[layer] = [each[: len(rows)] for each in memory]


@dataclass(frozen=True, eq=False)
class View:
    """Positions of tokens, and the mask that says which keys each query attends to.

    Attributes:
        queries: `(batch, query)`, int64: the position of each new token; a batch of one if all rows have the same
            positions.
        keys: `(batch, key)`, int64: the position of each key: the cached ones, then the new ones.
        mask: `(batch, query, key)`, bool: the attention mask; each query attends to at least one key. None means that
            each query attends to all keys at its own or earlier positions. With `selected`: `(batch, selected, key)`.
        cache: the KV cache of earlier tokens; the layers add the new ones.
        length: the number of positions that the queries need, if the caller knows it; otherwise it is read from the
            device, which on a GPU costs a synchronisation.
        selected: `(batch, selected)`, int64: the new tokens whose output is needed; None means all.
        within: a sliding window that hides further keys; None means no window.
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
        """Return the view with `mask` applied on top."""
        return self if mask.window is None or mask == self.within else replace(self, within=mask, _masks={})

    def select(self, selected: Tensor) -> "View":
        """Return the view for a block that computes only the selected tokens' output: `(batch, selected)`, int64."""
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
        """The number of positions that the queries need: their largest position plus one."""
        return self.length if self.length is not None else int(self.queries.max()) + 1

    @property
    def is_causal(self) -> bool:
        """Whether plain causal attention suffices: whole sequences without a cache, and all outputs are needed."""
        return self.mask is None and self.selected is None and self.queries.shape == self.keys.shape

    def text_mask(self) -> Tensor | None:
        """Return the attention mask without the sliding window, in the shape of `attention_mask`."""
        if self.mask is not None or (self.selected is None and self.queries.shape[1] == 1):
            return self.mask  # a single new token comes after all others
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
            bias: a function that returns the bias of pairs.
            shared_by: the positions that define the bias, if all layers share it; it is then computed once.
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
    """FlexAttention's mask, together with the documents `(batch, position)` from which it was made."""

    blocks: BlockMask
    documents: Tensor


Scope = Tensor | BlockMask | SharedMask | View
"""What restricts attention: the document of each position `(batch, position)`, a mask made from it, or a view."""


def select_queries(x: Tensor, scope: Scope | None) -> Tensor:
    """Select from `(batch, position, …)` the tokens whose output is needed: all, unless a view selects some."""
    if not isinstance(scope, View) or scope.selected is None:
        return x
    return x.gather(1, scope.selected[..., None].expand(-1, -1, x.shape[2]))

"""Who sees whom in rows that are not one sequence read from its beginning: shared beginnings, and text read so far."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn


class Cache:
    """Keys and values of each attention layer, for tokens that were read before.

    It holds what it is given in the order given; `View` says where each of them stands and who sees it. It is written
    in place, for inference only.

    Args:
        capacity: tokens a row that memory is set aside for; whenever more come, as much again.
        dtype: what they are kept in; their own type unless given.
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
            self._memory[layer] = self._room(key, stop), self._room(value, stop)
        elif stop > (full := self._memory[layer][0].shape[2]):
            past, size = self._memory[layer], max(stop, 2 * full)
            self._memory[layer] = self._room(key, size), self._room(value, size)
            for grown, kept in zip(self._memory[layer], past, strict=True):
                grown[:, :, :start] = kept[:, :, :start]
        keys, values = self._memory[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = key, value
        self._lengths[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def _room(self, like: Tensor, n_tokens: int) -> Tensor:
        batch, n_heads, _, d_head = like.shape
        size = (batch, n_heads, max(n_tokens, self._capacity), d_head)
        return torch.empty(size, dtype=self._dtype or like.dtype, device=like.device)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch alone: `(row,)`, int64."""
        for layer, memory in self._memory.items():
            length = self._lengths[layer]
            for each in memory:  # in place, and only what is in use
                each[: len(rows), :, :length] = each[rows, :, :length]
            self._memory[layer] = memory[0][: len(rows)], memory[1][: len(rows)]


@dataclass(frozen=True, eq=False)
class View:
    """Where tokens stand, and which of them each sees.

    Attributes:
        queries: `(batch, query)`, int64: the position of each token that is read now; of a batch of one where all rows
            have the same.
        keys: `(batch, key)`, int64: the position of each that can be seen: those in the cache, then those read now.
        seen: `(batch, query, key)`, bool; each query sees a key, itself if no other. None where each sees all that do
            not stand after it.
        cache: of the tokens read before; what is read now is added to it.
        wanted: `(batch, wanted)`, int64: those of the tokens read now whose output is asked for, where the rest are
            only seen; `seen` is then `(batch, wanted, key)`.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor | None = None
    cache: Cache | None = None
    wanted: Tensor | None = None
    _masks: dict[tuple[float, ...] | None, Tensor | None] = field(default_factory=dict)

    @property
    def asking(self) -> Tensor:
        """Positions of the tokens whose output is asked for: `(batch, query)`, or `(batch, wanted)`."""
        return self.queries if self.wanted is None else self.queries.expand(len(self.wanted), -1).gather(1, self.wanted)

    @property
    def is_causal(self) -> bool:
        """Whether these are sequences read from their beginnings, and all of their output is asked for."""
        return self.seen is None and self.wanted is None and self.queries.shape == self.keys.shape

    def of(self, wanted: Tensor) -> "View":
        """The same for a block of which only the output of some tokens is asked for: `(batch, wanted)`, int64."""
        seen = self.seen
        if seen is not None:
            seen = seen.expand(len(wanted), -1, -1).gather(1, wanted[..., None].expand(-1, -1, seen.shape[2]))
        return replace(self, seen=seen, wanted=wanted, _masks={})

    def mask(self, slopes: tuple[float, ...] | None) -> Tensor | None:
        """What attention adds to its scores, made once for all layers.

        Returns:
            With ALiBi's slopes `(batch, head, query, key)`, float32: `-slope * distance`, `-inf` where a key is not
            seen. Without, who is seen for all heads: `(batch, 1, query, key)`, bool; None where all are.
        """
        if slopes not in self._masks:
            asking, keys = self.asking[:, None, :, None], self.keys[:, None, None, :]
            mask = None if self.seen is None else self.seen[:, None]
            if self.seen is None and (self.wanted is not None or self.queries.shape[1] > 1):
                mask = asking >= keys  # a token that is read by itself stands after all others
            if slopes is not None:
                by_head = torch.tensor(slopes, device=keys.device)[:, None, None]
                bias = -by_head * (asking - keys)
                mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
            self._masks[slopes] = mask
        return self._masks[slopes]


Scope = Tensor | View
"""How attention is narrowed: the documents `(batch, position)` that positions belong to, or a view."""


def causal_view(n_positions: int, wanted: Tensor) -> View:
    """Of sequences read from their beginnings, of which the output of some tokens is asked for.

    Args:
        wanted: `(batch, wanted)`, int64.
    """
    positions = torch.arange(n_positions, device=wanted.device)[None]
    return View(positions, positions, wanted=wanted)


def asked_of(x: Tensor, scope: Scope | None) -> Tensor:
    """Those tokens of `(batch, position, …)` whose output is asked for: all, unless a view says which."""
    if not isinstance(scope, View) or scope.wanted is None:
        return x
    return x.gather(1, scope.wanted[..., None].expand(-1, -1, x.shape[2]))

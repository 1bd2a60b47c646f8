"""Who sees whom in rows that are not one sequence read from its beginning: shared beginnings, and text read so far."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn


class Cache:
    """Keys and values of each attention layer, for tokens that were read before.

    It holds what it is given in the order given; `View` says where each of them stands and who sees it.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's keys and values `(batch, head, position, d_head)`, and return all of them."""
        if layer in self._kept:
            past_key, past_value = self._kept[layer]
            key, value = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
        self._kept[layer] = key, value
        return key, value

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch alone: `(row,)`, int64."""
        self._kept = {layer: (key[rows], value[rows]) for layer, (key, value) in self._kept.items()}


@dataclass(frozen=True, eq=False)
class View:
    """Where tokens stand, and which of them each sees.

    Attributes:
        queries: `(batch, query)`, int64: the position of each token that is read now.
        keys: `(batch, key)`, int64: the position of each that can be seen: those in the cache, then those read now.
        seen: `(batch, query, key)`, bool; each query sees a key, itself if no other.
        cache: of the tokens read before; what is read now is added to it.
        wanted: `(batch, wanted)`, int64: those of the tokens read now whose output is asked for, where the rest are
            only seen; `seen` is then `(batch, wanted, key)`.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor
    cache: Cache | None = None
    wanted: Tensor | None = None
    _masks: dict[tuple[float, ...] | None, Tensor] = field(default_factory=dict)

    @property
    def asking(self) -> Tensor:
        """Positions of the tokens whose output is asked for: `(batch, query)`, or `(batch, wanted)`."""
        return self.queries if self.wanted is None else self.queries.gather(1, self.wanted)

    def of(self, wanted: Tensor) -> "View":
        """The same for a block of which only the output of some tokens is asked for: `(batch, wanted)`, int64."""
        seen = self.seen.gather(1, wanted[..., None].expand(-1, -1, self.seen.shape[2]))
        return replace(self, seen=seen, wanted=wanted, _masks={})

    def mask(self, slopes: tuple[float, ...] | None) -> Tensor:
        """What attention adds to its scores, made once for all layers.

        Returns:
            With ALiBi's slopes `(batch, head, query, key)`, float32: `-slope * distance`, `-inf` where a key is not
            seen. Without, `seen` for all heads: `(batch, 1, query, key)`, bool.
        """
        if slopes not in self._masks:
            mask = self.seen[:, None]
            if slopes is not None:
                distance = self.asking[:, None, :, None] - self.keys[:, None, None, :]
                by_head = torch.tensor(slopes, device=distance.device)[:, None, None]
                mask = (-by_head * distance).masked_fill_(~mask, -torch.inf)
            self._masks[slopes] = mask
        return self._masks[slopes]


Scope = Tensor | View
"""How attention is narrowed: the documents `(batch, position)` that positions belong to, or a view."""


def causal_view(n_positions: int, wanted: Tensor) -> View:
    """Of sequences read from their beginnings, of which the output of some tokens is asked for.

    Args:
        wanted: `(batch, wanted)`, int64.
    """
    positions = torch.arange(n_positions, device=wanted.device).expand(len(wanted), -1)
    return View(positions, positions, wanted[..., None] >= positions[:, None], wanted=wanted)


def asked_of(x: Tensor, scope: Scope | None) -> Tensor:
    """Those tokens of `(batch, position, d_model)` whose output is asked for: all, unless a view says which."""
    if not isinstance(scope, View) or scope.wanted is None:
        return x
    return x.gather(1, scope.wanted[..., None].expand(-1, -1, x.shape[2]))

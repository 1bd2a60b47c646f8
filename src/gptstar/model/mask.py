"""Which of the keys up to its own token a query attends to. Exported models carry this file: it needs torch only."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """A query attends to the last `window` keys, itself included, and to the first `sinks` keys of its document.

    It restricts attention and nothing else: distances stay those in the text, for every kind of positions. Xiao et al.
    count positions within what is kept instead, so that a sink is never further away than the window is long. With
    distances in the text, a bias that falls with distance, as ALiBi's does, takes a distant sink's weight away.

    A KV cache keeps all keys, and memory for it does not shrink.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023; not read in the original.

    Attributes:
        window: None means all keys up to the query's own.

    Raises:
        ValueError: a value is out of its range, or there are sinks without a window.
    """

    window: int | None = None
    sinks: int = 0

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"attention_window={self.window} is below 1")
        if self.sinks < 0:
            raise ValueError(f"attention_sinks={self.sinks} is not 0 or above")
        if self.sinks and self.window is None:
            raise ValueError(
                f"attention_sinks={self.sinks} has no effect without a window: give attention_window, or leave it out"
            )

    def hides(self, n_keys: int) -> bool:
        """Whether a query of a text of so many tokens can't attend to all of those before it."""
        return self.window is not None and n_keys > self.window + self.sinks

    def visible(self, queries: Tensor, keys: Tensor, places: Tensor | None = None) -> Tensor:
        """Whether a key lies within the window of a query, or is a sink: `(batch or 1, query, key)`, bool.

        That the key belongs to the query's document, and is not after the query, remains to be asked.

        Args:
            queries: `(batch or 1, query)`, int64: positions in the text.
            keys: `(batch or 1, key)`, int64.
            places: `(batch or 1, key)`, int64: positions of the keys in their documents; by default those in the text.
        """
        if self.window is None:
            return torch.ones(1, queries.shape[1], keys.shape[1], dtype=torch.bool, device=keys.device)
        near = keys[:, None] > (queries - self.window)[:, :, None]  # without a tensor of all distances
        return near if not self.sinks else near | ((keys if places is None else places)[:, None] < self.sinks)

    def n_visible(self, places: Tensor) -> Tensor:
        """Count the keys that queries attend to, by the queries' positions in their documents; int64, as those."""
        return places + 1 if self.window is None else (places + 1).clamp(max=self.window + self.sinks)

    def key_ranges(self, start: int, stop: int, *, one_document: bool) -> tuple[range, ...]:
        """Where the keys lie that a block of queries needs, in ascending order.

        Args:
            start, stop: where the queries begin and end.
            one_document: whether the text is a single document: then sinks are at its beginning only.
        """
        first = 0 if self.window is None else max(0, start - self.window + 1)
        if first <= self.sinks or (self.sinks and not one_document):
            return (range(stop),)
        return (range(self.sinks), range(first, stop)) if self.sinks else (range(first, stop),)


FULL = Mask()
"""A query attends to all keys up to its own."""

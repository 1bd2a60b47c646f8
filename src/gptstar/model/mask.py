"""Sliding-window attention with attention sinks. Exported models carry this file, so it imports torch only."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """A query attends to the last `window` keys, itself included, and to the first `sinks` keys of its document.

    It restricts attention only: distances remain those in the text, for every kind of positions. Xiao et al. instead
    number the remaining keys anew, so that a sink is never further away than the window is long. With distances in the
    text, a bias that falls with distance, such as ALiBi's, gives a distant sink almost no weight.

    A KV cache still keeps all keys: a window does not reduce its memory.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023; not read in the original.

    Attributes:
        window: the number of keys that a query attends to, itself included; None means all keys up to its own.
        sinks: the number of keys at the beginning of a document that every query attends to.

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
        """Whether the mask hides any earlier key in a text of `n_keys` tokens."""
        return self.window is not None and n_keys > self.window + self.sinks

    def visible(self, queries: Tensor, keys: Tensor, places: Tensor | None = None) -> Tensor:
        """Return whether a key lies within a query's window, or is a sink: `(batch or 1, query, key)`, bool.

        The caller also has to mask keys of other documents, and keys after the query.

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
        """Count the keys that each query attends to, given the queries' positions in their documents; both int64."""
        return places + 1 if self.window is None else (places + 1).clamp(max=self.window + self.sinks)

    def key_ranges(self, start: int, stop: int, *, one_document: bool) -> tuple[range, ...]:
        """Return the ranges of keys that a block of queries needs, in ascending order.

        Args:
            start, stop: the first query, and the one after the last.
            one_document: whether the text is a single document, so that sinks are at its beginning only.
        """
        first = 0 if self.window is None else max(0, start - self.window + 1)
        if first <= self.sinks or (self.sinks and not one_document):
            return (range(stop),)
        return (range(self.sinks), range(first, stop)) if self.sinks else (range(first, stop),)


FULL = Mask()
"""Full causal attention: a query attends to all keys up to its own."""

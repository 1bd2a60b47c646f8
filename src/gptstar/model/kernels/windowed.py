"""Sliding-window attention: each block of queries reads only the keys that it needs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.kernels.bias import query_blocks
from gptstar.model.mask import Mask
from gptstar.model.positions.base import Bias, Pairs, places_in_documents


@dataclass(frozen=True, eq=False)
class Restriction:
    """The keys that each query attends to: a sliding window within documents.

    Attributes:
        mask: the window and the sinks, which apply within each document.
        documents: `(batch, position)`, int64, or None for one document per row.
        places: `(batch, position)`, int64: position of each token in its document.
    """

    mask: Mask
    documents: Tensor | None
    places: Tensor | None

    @classmethod
    def within(cls, documents: Tensor | None, mask: Mask) -> "Restriction":
        """Restrict attention to a mask, and to documents `(batch, position)` if they are given."""
        return cls(mask, documents, None if documents is None else places_in_documents(documents))

    def keys_of(self, start: int, stop: int) -> tuple[range, ...]:
        """Return the ranges of keys that queries from `start` to `stop` need."""
        return self.mask.key_ranges(start, stop, one_document=self.documents is None)

    def pairs(self, start: int, stop: int, keys: Tensor) -> Pairs:
        """Return the pairs of queries from `start` to `stop` and keys `(key,)`, without the window."""
        queries = torch.arange(start, stop, device=keys.device)[None]
        allowed, places = queries[:, :, None] >= keys, None  # (1, query, key)
        if self.documents is not None and self.places is not None:
            allowed = allowed & (self.documents[:, start:stop, None] == self.documents[:, None, keys])
            places = self.places[:, start:stop]
        return Pairs(queries, keys[None], allowed, places, is_run=len(keys) == stop)

    def visible(self, pairs: Pairs) -> Tensor:
        """Return whether each query attends to each key: `(batch or 1, query, key)`, bool."""
        places = None if self.places is None else self.places[:, pairs.keys[0]]
        return pairs.mask & self.mask.visible(pairs.queries, pairs.keys, places)


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | Bias | None,
    restriction: Restriction,
    dropout: float = 0.0,
) -> Tensor:
    """Compute sliding-window attention without FlexAttention; `gptstar.model.kernels` states the shapes.

    Memory grows linearly with the length. Without a bias, and with slopes, so does time, because blocks skip keys that
    none of their queries attends to. Any other bias is built for all earlier keys.

    Args:
        bias: slopes, or a function that returns the bias of pairs, or None.
    """
    dtype = query.dtype
    if query.is_cuda and bias is not None:  # CUDA's kernels require a bias of the query's type
        query, key, value = query.float(), key.float(), value.float()
    of_each = len(query) if restriction.documents is not None or _is_function(bias) else 1
    n_heads = 1 if bias is None else query.shape[1]
    outputs = []
    with torch.autocast(query.device.type, enabled=False):  # it would round the bias
        for start, stop in query_blocks(query.shape[2], of_each * n_heads):
            ranges = (range(stop),) if _is_function(bias) else restriction.keys_of(start, stop)
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop],
                    _in_ranges(key, ranges),
                    _in_ranges(value, ranges),
                    attn_mask=_mask(bias, restriction, range(start, stop), ranges, query.device),
                    dropout_p=dropout,
                )
            )
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).to(dtype)


def _is_function(bias: Tensor | Bias | None) -> bool:
    return bias is not None and not isinstance(bias, Tensor)


def _in_ranges(x: Tensor, ranges: tuple[range, ...]) -> Tensor:
    """Return the positions of `(batch, head, position, d_head)` that lie in the ranges."""
    parts = [x[:, :, each.start : each.stop] for each in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _mask(
    bias: Tensor | Bias | None, restriction: Restriction, block: range, ranges: tuple[range, ...], device: torch.device
) -> Tensor:
    """Return the mask of a block for PyTorch's kernel: `(batch or 1, head or 1, query, key)`, bool or float32."""
    keys = torch.cat([torch.arange(each.start, each.stop, device=device) for each in ranges])
    pairs = restriction.pairs(block.start, block.stop, keys)
    visible = restriction.visible(pairs)[:, None]
    if bias is None:
        return visible
    added = -bias[:, None, None] * pairs.distance if isinstance(bias, Tensor) else bias(pairs)
    return added.masked_fill(~visible, -torch.inf)

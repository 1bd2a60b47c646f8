"""FlexAttention, for GPUs: one kernel adds a bias by distance to scores, and skips masked blocks."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gptstar.model.mask import FULL, Mask
from gptstar.model.positions.base import places_in_documents


def block_mask(n_positions: int, documents: Tensor | None, device: torch.device, mask: Mask = FULL) -> BlockMask:
    """Return FlexAttention's mask, which hides keys after a query and keys of other documents.

    Args:
        documents: `(batch, position)`, int64, or None for one document per row.
        mask: the sliding window and the sinks, which apply within each document.
    """
    places = None if documents is None or not mask.sinks else places_in_documents(documents)

    def attends(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = query >= key
        if documents is not None:
            allowed = allowed & (documents[batch, query] == documents[batch, key])
        if mask.window is None:
            return allowed
        near = query - key < mask.window
        if mask.sinks:
            near = near | ((key if places is None else places[batch, key]) < mask.sinks)
        return allowed & near

    n_rows = None if documents is None else len(documents)
    return create_block_mask(attends, n_rows, None, n_positions, n_positions, device=device)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: BlockMask) -> Tensor:
    """Compute attention under a mask, with a bias by distance; neither scores nor bias are stored.

    Inside a compiled graph it becomes a part of that graph; elsewhere it is compiled separately. Inputs have one dtype.

    Args:
        bias: slopes `(head,)`, or a table `(head, distance)`, float32, which receives no gradient; None for no bias.

    Source: Dong et al., "Flex Attention", 2024.
    """

    def linear(score: Tensor, _batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        assert bias is not None
        return score - bias[head] * (query_at - key_at)

    def from_table(score: Tensor, _batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[head, (query_at - key_at).clamp(min=0)]  # computed at masked keys, too

    modify = None if bias is None else linear if bias.ndim == 1 else from_table
    attend = flex_attention if torch.compiler.is_compiling() else _compiled()
    return attend(query, key, value, score_mod=modify, block_mask=mask)  # type: ignore[operator]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """Return FlexAttention compiled separately; uncompiled it would store all scores."""
    return torch.compile(flex_attention, fullgraph=True)

"""Causal attention within documents, for windows that hold several."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from gptstar.model.kernels.bias import QUERY_BLOCK

EXTRA_FEATURES = 4
"""Extra features per head if there are slopes; CUDA's kernels require widths that are multiples of 4."""


def attention_within_documents(
    query: Tensor, key: Tensor, value: Tensor, documents: Tensor, slopes: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Compute causal attention in which a query attends to the keys of its own document only.

    All heads share one mask, whereas a bias would need that memory for each head. So slopes become a feature of queries
    and keys, as in `columns_attention`. This adds a rounding error of about 1e-5 of an attention weight.
    """
    n_positions, d_head, dtype = query.shape[2], query.shape[3], query.dtype
    positions = torch.arange(n_positions, device=query.device)
    if slopes is not None:  # bfloat16 can't count positions
        query, key = query.float(), key.float()
        value = pad(value.float(), (0, EXTRA_FEATURES))  # the kernels require values as wide as queries
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, n_positions, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, n_positions)
            queries, keys = query[:, :, start:stop], key[:, :, :stop]
            if slopes is not None:
                queries = _with_feature(queries, slopes[:, None] * math.sqrt(d_head))
                # Count from the middle of the queries, so that near keys, which matter most, get small numbers.
                keys = _with_feature(keys, positions[:stop] - (start + stop) // 2)
            mask = (positions[start:stop, None] >= positions[:stop]) & (
                documents[:, start:stop, None] == documents[:, None, :stop]
            )
            outputs.append(
                scaled_dot_product_attention(
                    queries,
                    keys,
                    value[:, :, :stop],
                    attn_mask=mask[:, None],  # (batch, 1, query, key)
                    dropout_p=dropout,
                    scale=1 / math.sqrt(d_head),
                )[..., :d_head]
            )
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).to(dtype)


def _with_feature(x: Tensor, feature: Tensor) -> Tensor:
    """Widen `(batch, head, position, d_head)` by a feature, which broadcasts over its first axes, and zeros."""
    extra = pad(feature[..., None].to(x.dtype), (0, EXTRA_FEATURES - 1))
    return torch.cat((x, extra.expand(*x.shape[:-1], EXTRA_FEATURES)), dim=-1)

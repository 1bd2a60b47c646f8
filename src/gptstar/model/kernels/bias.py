"""PyTorch's fused attention with an explicit bias: exact for all kinds of positions, devices, types and lengths."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.positions.base import Bias, Pairs, places_in_documents

QUERY_BLOCK = 1024
"""Queries for which a bias is built at once, so that the memory of a forward pass grows linearly with the context.

Training keeps the bias of every block for the backward pass.
"""

BIAS_ELEMENTS = 2**26
"""The largest bias of a block, 256 MiB; a block with very many keys has fewer queries."""


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | Bias,
    dropout: float = 0.0,
    documents: Tensor | None = None,
) -> Tensor:
    """Compute causal attention with a float32 bias, which is built for one block of queries at a time.

    Args:
        bias: slopes, or a function that returns the bias of pairs.
        documents: the document of each position; only if `bias` is a function. With slopes use
            `attention_within_documents`, which is faster.
    """
    dtype = query.dtype
    if query.is_cuda:  # CUDA's kernels require a bias of the query's type, and bfloat16 is too coarse for it
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    # Autocast would round the bias to bfloat16, which can't count past 256.
    with torch.autocast(query.device.type, enabled=False):
        rows = query.shape[1] * (1 if isinstance(bias, Tensor) else len(query))
        places = None if documents is None else places_in_documents(documents)
        for start, stop in query_blocks(query.shape[2], rows):
            # PyTorch's memory-efficient kernel requires a bias of four dimensions. The bias has no variable, so that
            # its memory is freed before the next one is made.
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop],
                    key[:, :, :stop],
                    value[:, :, :stop],
                    attn_mask=linear_bias(bias, range(start, stop), range(stop))[None]
                    if isinstance(bias, Tensor)
                    else _masked(
                        bias, range(start, stop), documents, places, query.device
                    ),  # (batch or 1, head, query, key)
                    dropout_p=dropout,
                )
            )
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).to(dtype)


def linear_bias(slopes: Tensor, queries: range, keys: range) -> Tensor:
    """Return the bias of slopes `(head,)` for queries and keys at the given positions: `(head, query, key)`, float32.

    It is `-slope * distance`, and `-inf` where the key comes after the query.
    """
    query = torch.arange(queries.start, queries.stop, device=slopes.device)
    key = torch.arange(keys.start, keys.stop, device=slopes.device)
    distance = query[:, None] - key[None, :]  # (query, key)
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill_(distance < 0, -torch.inf)  # in place: it is the largest tensor in a long context


def _masked(bias: Bias, block: range, documents: Tensor | None, places: Tensor | None, device: torch.device) -> Tensor:
    """Return the bias of a block of queries, `-inf` at masked keys: `(batch or 1, head, query, key)`."""
    start, stop = block.start, block.stop
    keys = torch.arange(stop, device=device)[None]
    queries = keys[:, start:]
    allowed = queries[:, :, None] >= keys[:, None]  # (1, query, key)
    if documents is not None:
        allowed = allowed & (documents[:, start:stop, None] == documents[:, None, :stop])
    pairs = Pairs(queries, keys, allowed, None if places is None else places[:, start:stop], is_run=True)
    return bias(pairs).masked_fill(~allowed[:, None], -torch.inf)


def query_blocks(n_positions: int, n_heads: int) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of blocks of queries whose bias, `n_heads` numbers per pair, stays within the limits."""
    start = 0
    while start < n_positions:
        keys = min(start + QUERY_BLOCK, n_positions)  # at most
        stop = min(keys, start + max(1, BIAS_ELEMENTS // (n_heads * keys)))
        yield start, stop
        start = stop

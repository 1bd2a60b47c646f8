"""A bias beside PyTorch's fused attention: the exact form, for every kind of positions, device, type and length."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.positions.base import Bias, Pairs, places_in_documents

QUERY_BLOCK = 1024
"""Queries a bias is built for at once: reading a longer context takes memory in proportion to it, not to its square.

Training keeps every block's bias for the backward pass.
"""

BIAS_ELEMENTS = 2**26
"""The largest bias of a block, 256 MiB: where there are very many keys, a block has fewer queries."""


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | Bias,
    dropout: float = 0.0,
    documents: Tensor | None = None,
) -> Tensor:
    """Causal attention whose scores get a bias, float32 and built by block.

    Args:
        bias: slopes, or a function that gives the bias of pairs.
        documents: not with slopes, for which `attention_within_documents` is faster.
    """
    dtype = query.dtype
    if query.is_cuda:  # its kernels take a bias of the query's type only, and bfloat16 can't hold this one
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    # Autocast would round the bias to bfloat16, which can't count past 256.
    with torch.autocast(query.device.type, enabled=False):
        rows = query.shape[1] * (1 if isinstance(bias, Tensor) else len(query))
        places = None if documents is None else places_in_documents(documents)
        for start, stop in query_blocks(query.shape[2], rows):
            # The kernel that keeps no (query, key) scores takes a bias of four dimensions only. It has no name, so that
            # it is gone before the next one is made.
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
    """The bias of slopes `(head,)`, float32, for queries and keys at these positions: `(head, query, key)`.

    It is `-slope * distance`, and `-inf` where the key is after the query. Always float32: bfloat16 can't tell 256 from
    257.
    """
    query = torch.arange(queries.start, queries.stop, device=slopes.device)
    key = torch.arange(keys.start, keys.stop, device=slopes.device)
    distance = query[:, None] - key[None, :]  # (query, key)
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill_(distance < 0, -torch.inf)  # in place: it is the largest tensor of a long context


def _masked(bias: Bias, block: range, documents: Tensor | None, places: Tensor | None, device: torch.device) -> Tensor:
    """The bias of a block of queries, `-inf` where they don't attend: `(batch or 1, head, query, key)`."""
    start, stop = block.start, block.stop
    keys = torch.arange(stop, device=device)[None]
    queries = keys[:, start:]
    allowed = queries[:, :, None] >= keys[:, None]  # (1, query, key)
    if documents is not None:
        allowed = allowed & (documents[:, start:stop, None] == documents[:, None, :stop])
    pairs = Pairs(queries, keys, allowed, None if places is None else places[:, start:stop], is_run=True)
    return bias(pairs).masked_fill(~allowed[:, None], -torch.inf)


def query_blocks(n_positions: int, n_heads: int) -> Iterator[tuple[int, int]]:
    """Where blocks of queries begin and end, so that none of their biases, `n_heads` times all pairs, is too large."""
    start = 0
    while start < n_positions:
        keys = min(start + QUERY_BLOCK, n_positions)  # or fewer
        stop = min(keys, start + max(1, BIAS_ELEMENTS // (n_heads * keys)))
        yield start, stop
        start = stop

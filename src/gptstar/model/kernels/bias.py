"""ALiBi as a bias beside PyTorch's fused attention: the exact form, for every device, type and length."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.positions import alibi_bias

QUERY_BLOCK = 1024
"""Queries a bias is built for at once: reading a longer context takes memory in proportion to it, not to its square.

Training keeps every block's bias for the backward pass.
"""

BIAS_ELEMENTS = 2**26
"""Of a block's bias at most, 256 MiB: where there are very many keys, a block has fewer queries."""


def biased_attention(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal attention with ALiBi, the bias float32 and built by block.

    Args:
        query: `(batch, head, position, d_head)`; `key` and `value` likewise.
        slopes: `(head,)`, float32.
        dropout: probability of dropping an attention weight.

    Returns:
        `(batch, head, position, d_head)`.
    """
    dtype = query.dtype
    if query.is_cuda:  # its kernels take a bias of the query's type only, and bfloat16 can't hold this one
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    # Autocast would round the bias to bfloat16, which can't count past 256.
    with torch.autocast(query.device.type, enabled=False):
        for start, stop in query_blocks(query.shape[2], len(slopes)):
            # The kernel that keeps no (query, key) scores takes a bias of four dimensions only. It has no name, so that
            # it is gone before the next one is made.
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop],
                    key[:, :, :stop],
                    value[:, :, :stop],
                    attn_mask=alibi_bias(slopes, range(start, stop), range(stop))[None],  # (1, head, query, key)
                    dropout_p=dropout,
                )
            )
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).to(dtype)


def query_blocks(n_positions: int, n_heads: int) -> Iterator[tuple[int, int]]:
    """Where blocks of queries begin and end, so that none of their biases is too large."""
    start = 0
    while start < n_positions:
        keys = min(start + QUERY_BLOCK, n_positions)  # or fewer
        stop = min(keys, start + max(1, BIAS_ELEMENTS // (n_heads * keys)))
        yield start, stop
        start = stop

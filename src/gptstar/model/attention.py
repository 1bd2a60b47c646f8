"""Causal self-attention: one short definition, and the fast form that is tested against it."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.positions import alibi_bias, rotary_angles, rotate

QUERY_BLOCK = 1024
"""Queries a bias is built for at once: reading a longer context takes memory in proportion to it, not to its square.

Training keeps every block's bias for the backward pass; its contexts are short.
"""


def reference_attention(query: Tensor, key: Tensor, value: Tensor, attention_bias: Tensor) -> Tensor:
    """What every fast form has to agree with, in float32.

    Args:
        query: `(batch, head, query, d_head)`; `key` and `value` are `(batch, head, key, d_head)`.
        attention_bias: `(head, query, key)`, added to the scores; `-inf` forbids.

    Returns:
        `(batch, head, query, d_head)`, float32.

    Source: Vaswani et al., "Attention Is All You Need", 2017, equation 1.
    """
    scores = query.float() @ key.float().transpose(-2, -1) / math.sqrt(query.shape[-1])
    return torch.softmax(scores + attention_bias, dim=-1) @ value.float()


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Causal attention through PyTorch's fused kernels, with ALiBi where slopes are given.

    Args:
        query: `(batch, head, position, d_head)`; `key` and `value` likewise.
        slopes: `(head,)`, float32, or None for no bias.
        dropout: probability of dropping an attention weight.

    Returns:
        `(batch, head, position, d_head)`.
    """
    if slopes is None:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    n_positions, dtype = query.shape[2], query.dtype
    if query.is_cuda:  # its kernels take a bias of the query's type only, and bfloat16 can't hold this one
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    # Autocast would round the bias to bfloat16, which can't count past 256.
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, n_positions, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, n_positions)
            # The kernel that keeps no (query, key) scores takes a bias of four dimensions only.
            bias = alibi_bias(slopes, range(start, stop), range(stop))[None]  # (1, head, query, key)
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], attn_mask=bias, dropout_p=dropout
                )
            )
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).to(dtype)


class Attention(nn.Module):
    """Multi-head causal self-attention; head width free of `d_model / n_heads`.

    Args:
        slopes: one ALiBi slope a head, or None.
        rotary: turn queries and keys by their positions.
    """

    def __init__(
        self, d_model: int, n_heads: int, d_head: int, *, slopes: tuple[float, ...] | None, rotary: bool, dropout: float
    ) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_head
        self.slopes, self.rotary, self.dropout = slopes, rotary, dropout
        self.qkv = nn.Linear(d_model, 3 * n_heads * d_head)
        self.out = nn.Linear(n_heads * d_head, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, position, d_model)` → the same shape."""
        B, T, _ = x.shape
        query, key, value = (
            part.view(B, T, self.n_heads, self.d_head).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )  # (batch, head, position, d_head) each
        if self.rotary:
            angles = rotary_angles(T, self.d_head, x.device)
            query, key = rotate(query, *angles), rotate(key, *angles)
        slopes = None if self.slopes is None else torch.tensor(self.slopes, device=x.device)
        mixed = causal_attention(query, key, value, slopes, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).reshape(B, T, -1))

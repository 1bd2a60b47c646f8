"""Attention as plain matrix products: for short contexts the fastest form on CPUs that multiply bfloat16."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERY_BLOCK = 256
"""Queries at once: a block knows no keys behind it, and its scores for one head fit a core's cache."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # for CPUs, where compiling does not pay
def products_attention(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = None) -> Tensor:
    """Causal attention, with ALiBi where slopes are given; the softmax in float32, the products in the inputs' type.

    In bfloat16 a score is rounded once more than in a fused kernel, before the bias is added in float32. The weights
    are kept for the backward pass: memory grows with half the square of the length.

    Args:
        query: `(batch, head, position, d_head)`; `key` and `value` likewise.
        slopes: `(head,)`, float32, or None for no bias.

    Returns:
        `(batch, head, position, d_head)`.
    """
    with torch.autocast(query.device.type, enabled=False):
        mixed: Tensor = _Products.apply(query, key, value, slopes)  # type: ignore[no-untyped-call]
    return mixed


def _blocks(n_positions: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + QUERY_BLOCK, n_positions)) for start in range(0, n_positions, QUERY_BLOCK))


def _bias(slopes: Tensor | None, start: int, stop: int, like: Tensor) -> Tensor:
    """`(head or 1, query, key)`, float32: `slope * (key - last key)`, and `-inf` after the query."""
    key = torch.arange(stop, device=like.device)
    later = key > torch.arange(start, stop, device=like.device)[:, None]  # (query, key)
    by_key = torch.zeros(1, stop, device=like.device) if slopes is None else slopes[:, None] * (key - stop + 1)
    return by_key[:, None].masked_fill(later, -torch.inf)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None) -> Tensor:
        batch, n_heads, n_positions, d_head = query.shape
        scaled = query / math.sqrt(d_head)
        # Laid out as the next projection reads it: (batch, position, head, d_head).
        mixed = query.new_empty(batch, n_positions, n_heads, d_head).transpose(1, 2)
        kept = []
        for start, stop in _blocks(n_positions):
            weights = scaled[:, :, start:stop] @ key[:, :, :stop].transpose(-2, -1)  # scores, till overwritten
            bias = _bias(slopes, start, stop, query)
            for scores in weights:  # a sequence at a time, so that float32 stays in the cache
                scores.copy_(torch.softmax(scores + bias, dim=-1))
            mixed[:, :, start:stop] = weights @ value[:, :, :stop]
            kept.append(weights)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, mixed, *kept)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed, *kept = ctx.saved_tensors
        scale = 1 / math.sqrt(query.shape[-1])
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        # What a softmax takes off each of its scores' gradients (Dao et al., "FlashAttention", 2022, appendix B.2).
        shared = (grad.float() * mixed.float()).sum(-1, keepdim=True)  # (batch, head, query, 1)
        for weights, (start, stop) in zip(kept, _blocks(query.shape[2]), strict=True):
            arriving = grad[:, :, start:stop]
            of_value[:, :, :stop] += weights.transpose(-2, -1) @ arriving
            of_scores = arriving @ value[:, :, :stop].transpose(-2, -1)  # of the weights, till overwritten
            for scores, weight, less in zip(of_scores, weights, shared[:, :, start:stop], strict=True):
                scores.copy_((scores - less).mul_(weight).mul_(scale))
            of_query[:, :, start:stop] = of_scores @ key[:, :, :stop]
            of_key[:, :, :stop] += of_scores.transpose(-2, -1) @ query[:, :, start:stop]
        return of_query, of_key, of_value, None

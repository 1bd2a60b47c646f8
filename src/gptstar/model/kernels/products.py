"""Attention as plain matrix products: fastest on CPUs."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERY_BLOCK = 256
"""Queries in a block; a block skips the keys after its last query."""

BLOCK_SCORES = 2**26
"""The most scores in a block; with very many keys or sequences, a block has fewer queries."""

CACHED_SCORES = 2**20
"""Scores whose softmax is computed at once: as many as fit a CPU's cache in float32."""

KEPT_UP_TO = 2048
"""The longest sequence whose attention weights are kept for the backward pass; longer ones recompute them."""


def products_attention(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """Compute causal attention as matrix products in the inputs' type, with the softmax in float32 or wider.

    In bfloat16 each score is rounded before the bias is added in float32, once more than in a fused kernel. Memory
    grows linearly with the length; in training, for lengths up to `KEPT_UP_TO`, with half of its square.
    """
    records = torch.is_grad_enabled()  # within a Function it never is
    with torch.autocast(query.device.type, enabled=False):
        mixed: Tensor = _Products.apply(query, key, value, slopes, documents, records)  # type: ignore[no-untyped-call]
    return mixed


def _blocks(like: Tensor) -> Iterator[tuple[int, int]]:
    """Return the start and stop of each block of queries."""
    batch, n_heads, n_positions, _ = like.shape
    size = max(1, min(QUERY_BLOCK, BLOCK_SCORES // max(1, batch * n_heads * n_positions)))
    return ((start, min(start + size, n_positions)) for start in range(0, n_positions, size))


def _pieces(scores: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of heads and queries of `(head, query, key)` whose scores fit the cache together."""
    n_heads, n_queries, n_keys = scores.shape
    heads = max(1, CACHED_SCORES // (n_queries * n_keys))
    queries = max(1, min(n_queries, CACHED_SCORES // n_keys))
    for head in range(0, n_heads, heads):
        for query in range(0, n_queries, queries):
            yield slice(head, head + heads), slice(query, query + queries)


def _weights(
    scaled: Tensor, key: Tensor, slopes: Tensor | None, documents: Tensor | None, start: int, stop: int
) -> Tensor:
    """Return the attention weights of queries from `start` to `stop`: `(batch, head, query, key)`."""
    weights = scaled[:, :, start:stop] @ key[:, :, :stop].transpose(-2, -1)  # scores, until overwritten
    later = torch.ones(stop - start, stop - start, dtype=torch.bool, device=key.device).triu_(1)  # (query, key)
    wide, by_key = _wide(scaled), None
    if slopes is not None:
        # A softmax ignores a term that is the same for all keys, so distances may be counted from the middle query:
        # near keys, which matter most, get small numbers.
        middle = (start + stop) // 2
        by_key = slopes.to(wide)[:, None] * torch.arange(-middle, stop - middle, device=key.device)  # (head, key)
    for number, sequence in enumerate(weights):
        others = None  # keys of other documents: (query, key)
        if documents is not None:
            others = documents[number, start:stop, None] != documents[number, :stop]
        for heads, queries in _pieces(sequence):
            piece = sequence[heads, queries]
            scores = piece.to(wide) if by_key is None else piece + by_key[heads, None]
            scores[:, :, start:].masked_fill_(later[queries], -torch.inf)
            if others is not None:
                scores.masked_fill_(others[queries], -torch.inf)
            piece.copy_(torch.softmax(scores, dim=-1))
    return weights


def _wide(like: Tensor) -> torch.dtype:
    """Return float32, or float64 if the tensor has that type."""
    return torch.promote_types(like.dtype, torch.float32)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        slopes: Tensor | None,
        documents: Tensor | None,
        records: bool,
    ) -> Tensor:
        batch, n_heads, n_positions, d_head = query.shape
        # Parts of a joint projection aren't contiguous, which makes products up to five times slower.
        scaled, key, value = (query / math.sqrt(d_head)).contiguous(), key.contiguous(), value.contiguous()
        # Laid out as the next projection reads it: (batch, position, head, d_head).
        mixed = query.new_empty(batch, n_positions, n_heads, d_head).transpose(1, 2)
        learns = records and any(ctx.needs_input_grad)
        saved = []
        for start, stop in _blocks(query):
            weights = _weights(scaled, key, slopes, documents, start, stop)
            mixed[:, :, start:stop] = weights @ value[:, :, :stop]
            if learns and n_positions <= KEPT_UP_TO:
                saved.append(weights)
        if learns:
            ctx.save_for_backward(scaled, key, value, mixed, slopes, documents, *saved)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        scaled, key, value, mixed, slopes, documents, *saved = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(scaled), torch.zeros_like(key), torch.zeros_like(value)
        # A softmax's backward pass subtracts this from each gradient (Dao et al., "FlashAttention", 2022, B.2).
        wide = _wide(scaled)
        shared = (grad.to(wide) * mixed.to(wide)).sum(-1, keepdim=True)  # (batch, head, query, 1)
        grad = grad.contiguous()
        for number, (start, stop) in enumerate(_blocks(scaled)):
            weights = saved[number] if saved else _weights(scaled, key, slopes, documents, start, stop)
            arriving = grad[:, :, start:stop]
            of_value[:, :, :stop] += weights.transpose(-2, -1) @ arriving
            of_scores = arriving @ value[:, :, :stop].transpose(-2, -1)  # gradients of the weights, until overwritten
            for scores, weight, less in zip(of_scores, weights, shared[:, :, start:stop], strict=True):
                for heads, queries in _pieces(scores):
                    piece = scores[heads, queries]
                    piece.copy_((piece - less[heads, queries]).mul_(weight[heads, queries]))
            of_query[:, :, start:stop] = of_scores @ key[:, :, :stop]
            of_key[:, :, :stop] += of_scores.transpose(-2, -1) @ scaled[:, :, start:stop]
        return of_query.mul_(1 / math.sqrt(scaled.shape[-1])), of_key, of_value, None, None, None

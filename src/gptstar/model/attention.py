"""Causal self-attention: one short definition, and the fast form that is tested against it."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.positions import RotaryScaling, alibi_bias, rotary_angles, rotate
from gptstar.model.view import Scope, View, asked_of

QUERY_BLOCK = 1024
"""Queries a bias is built for at once: reading a longer context takes memory in proportion to it, not to its square.

Training keeps every block's bias for the backward pass; its contexts are short.
"""

BIAS_ELEMENTS = 2**26
"""Of a block's bias at most, 256 MiB: where there are very many keys, a block has fewer queries."""

EXTRA_FEATURES = 4
"""Beside a head's own where ALiBi is one of them: CUDA's kernels take widths that are multiples of 4."""


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
        for start, stop in query_blocks(n_positions, len(slopes)):
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


def attention_within_documents(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Tensor,
    slopes: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention in which a query sees the keys of its own document and no others.

    One mask serves all heads. A softmax does not see what is the same for all keys, so ALiBi's
    `-slope * (query - key)` may as well be `slope * key`: a product of the head's slope and the key's position, which
    rides along as a feature of queries and keys. A bias would be as large as the mask for each of the heads.
    It rounds more, by about 1e-5 of a weight.

    Args:
        query: `(batch, head, position, d_head)`; `key` and `value` likewise.
        documents: `(batch, position)`, int64: the number of the document that a position belongs to.
        slopes: `(head,)`, float32, or None for no ALiBi.
        dropout: probability of dropping an attention weight.

    Returns:
        `(batch, head, position, d_head)`.
    """
    n_positions, d_head, dtype = query.shape[2], query.shape[3], query.dtype
    positions = torch.arange(n_positions, device=query.device)
    if slopes is not None:  # bfloat16 can't count positions
        query, key = query.float(), key.float()
        # The kernels want values as wide as queries.
        value = nn.functional.pad(value.float(), (0, EXTRA_FEATURES))
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, n_positions, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, n_positions)
            queries, keys = query[:, :, start:stop], key[:, :, :stop]
            if slopes is not None:
                queries = _with_feature(queries, slopes[:, None] * math.sqrt(d_head))
                # Counted from the middle of the queries, so that near keys, which matter, get small numbers.
                keys = _with_feature(keys, positions[:stop] - (start + stop) // 2)
            seen = (positions[start:stop, None] >= positions[:stop]) & (
                documents[:, start:stop, None] == documents[:, None, :stop]
            )
            outputs.append(
                scaled_dot_product_attention(
                    queries,
                    keys,
                    value[:, :, :stop],
                    attn_mask=seen[:, None],  # (batch, 1, query, key)
                    dropout_p=dropout,
                    scale=1 / math.sqrt(d_head),
                )[..., :d_head]
            )
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).to(dtype)


def _with_feature(x: Tensor, feature: Tensor) -> Tensor:
    """`(batch, head, position, d_head)`, wider by `EXTRA_FEATURES`: a feature that fits its first axes, and zeros."""
    extra = nn.functional.pad(feature[..., None].to(x.dtype), (0, EXTRA_FEATURES - 1))
    return torch.cat((x, extra.expand(*x.shape[:-1], EXTRA_FEATURES)), dim=-1)


def viewed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of `(batch, head, query, d_head)` to the keys that a view shows; `mask` as `View` makes it."""
    dtype = query.dtype
    if mask.dtype is not torch.bool:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask).to(dtype)


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
        self.rotary_scaling: RotaryScaling | None = None
        self.qkv = nn.Linear(d_model, 3 * n_heads * d_head)
        self.out = nn.Linear(n_heads * d_head, d_model)

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """`(batch, position, d_model)` → the same shape.

        Args:
            scope: the documents `(batch, position)`, int64, across which nothing is seen, or a view; None where every
                position sees all that are before it.
        """
        query, key, value = (
            part.view(*part.shape[:2], self.n_heads, self.d_head).transpose(1, 2)
            for part in self._projections(x, scope)
        )  # (batch, head, position, d_head) each
        if self.rotary:
            view = scope if isinstance(scope, View) else None
            positions = torch.arange(x.shape[1], device=x.device) if view is None else view.queries[:, None]
            angles = rotary_angles(positions, self.d_head, self.rotary_scaling)
            key = rotate(key, *angles)
            if view is not None and view.wanted is not None:
                angles = rotary_angles(view.asking[:, None], self.d_head, self.rotary_scaling)
            query = rotate(query, *angles)
        slopes = None if self.slopes is None else torch.tensor(self.slopes, device=x.device)
        dropout = self.dropout if self.training else 0.0
        if scope is None:
            mixed = causal_attention(query, key, value, slopes, dropout)
        elif isinstance(scope, View):
            if scope.cache is not None:
                key, value = scope.cache.extend(self, key, value)
            mixed = viewed_attention(query, key, value, scope.mask(self.slopes))
        else:
            mixed = attention_within_documents(query, key, value, scope, slopes, dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _projections(self, x: Tensor, scope: Scope | None) -> Sequence[Tensor]:
        """Queries, keys and values, `(batch, position, head * d_head)`; queries only of tokens that are asked for."""
        asked = asked_of(x, scope)
        if asked is x:
            return self.qkv(x).chunk(3, dim=-1)
        width = self.n_heads * self.d_head
        (of_query, of_seen), (bias, bias_of_seen) = (each.tensor_split([width]) for each in self.qkv.parameters())
        return nn.functional.linear(asked, of_query, bias), *nn.functional.linear(x, of_seen, bias_of_seen).chunk(2, -1)


@contextlib.contextmanager
def scaled_rotary(model: nn.Module, scaling: RotaryScaling | None) -> Iterator[None]:
    """Within it a model's rotary positions are stretched. It is no part of the model: it is not saved with it."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before = [layer.rotary_scaling for layer in layers]
    for layer in layers:
        layer.rotary_scaling = scaling
    try:
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            layer.rotary_scaling = kept

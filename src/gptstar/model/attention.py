"""Causal self-attention, and which of its fast forms computes it."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.kernels.bias import biased_attention
from gptstar.model.kernels.choice import AttentionForm, attention_form, compute_dtype
from gptstar.model.kernels.columns import LONGEST, columns_attention
from gptstar.model.kernels.documents import attention_within_documents
from gptstar.model.kernels.flex import block_mask, masked_attention
from gptstar.model.kernels.products import products_attention
from gptstar.model.positions import RotaryScaling, rotary_angles, rotate, slopes_on
from gptstar.model.view import Scope, View, select_queries


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slopes: Tensor | None = None,
    dropout: float = 0.0,
    form: AttentionForm = "auto",
    documents: Tensor | BlockMask | None = None,
) -> Tensor:
    """Causal attention, with ALiBi where slopes are given.

    Args:
        query: `(batch, head, position, d_head)`; `key` and `value` likewise.
        slopes: `(head,)`, float32, or None for no bias.
        dropout: probability of dropping an attention weight.
        form: how; without slopes `bias`, `columns` and `flex` are all PyTorch's kernel for plain causal attention, and
            with documents `bias` and `columns` are `attention_within_documents`.
        documents: `(batch, position)`, int64: the document of each position, beyond which it sees nothing; for
            FlexAttention also the mask that `block_mask` makes of them, so that layers can share it.

    Returns:
        `(batch, head, position, d_head)`.
    """
    form = attention_form(query.device, query.dtype, query.shape[3], dropout) if form == "auto" else form
    takes_mask = form == "flex" and not dropout and not (slopes is None and documents is None)
    if takes_mask and not isinstance(documents, BlockMask):
        documents = block_mask(query.shape[2], documents, query.device)
    if isinstance(documents, BlockMask):
        return masked_attention(query, key, value, slopes, documents)
    if form == "products" and not dropout:
        return products_attention(query, key, value, slopes, documents)
    if documents is not None:
        return attention_within_documents(query, key, value, documents, slopes, dropout)
    if slopes is None:
        return scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    if form == "columns" and query.shape[2] <= LONGEST:
        return columns_attention(query, key, value, slopes, dropout)
    return biased_attention(query, key, value, slopes, dropout)


def viewed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `(batch, head, query, d_head)` to the keys that a view shows; `mask` as `View` makes it.

    Keys and values may be of a wider type than queries, as a cache keeps them.
    """
    dtype, compiling = query.dtype, torch.compiler.is_compiling()
    # A compiler casts keys and values as it reads them; elsewhere PyTorch's kernel does not need float32 copies.
    of_one = query.shape[2] == 1 and (compiling or (key.dtype is torch.float32 and not query.is_cuda))
    if of_one or (mask is not None and mask.dtype is not torch.bool):
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False):
        query = query.to(key.dtype)
        if of_one:
            return _attention_of_one(query, key, value, mask).to(dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask).to(dtype)


def _attention_of_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query per row; a CPU reads keys times vector twice as fast as vector times keys."""
    scores = (key @ (query * query.shape[3] ** -0.5).transpose(2, 3)).transpose(2, 3)  # (batch, head, 1, key)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    return torch.softmax(scores, dim=-1) @ value


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
        self.form: AttentionForm = "auto"
        self.qkv = nn.Linear(d_model, 3 * n_heads * d_head)
        self.out = nn.Linear(n_heads * d_head, d_model)

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """`(batch, position, d_model)` → the same shape.

        Args:
            scope: the documents `(batch, position)`, int64, across which nothing is seen, or a view; None where every
                position sees all that are before it.
        """
        query, key, value = self._projections(x, scope)
        return self.out(self.mixed(query, key, value, scope))

    def mixed(self, query: Tensor, key: Tensor, value: Tensor, scope: Scope | None) -> Tensor:
        """Values by the weights of attention, before the last projection: `(batch, query, head * d_head)`.

        Args:
            query: `(batch, query, head * d_head)`: of the tokens that are asked for.
            key: `(batch, position, head * d_head)`; `value` likewise.
            scope: as `forward` takes it.
        """
        n_positions, device = key.shape[1], key.device
        query, key, value = (
            part.view(*part.shape[:2], self.n_heads, self.d_head).transpose(1, 2) for part in (query, key, value)
        )  # (batch, head, position, d_head) each
        if self.rotary:
            view = scope if isinstance(scope, View) else None
            positions = torch.arange(n_positions, device=device) if view is None else view.queries[:, None]
            angles = rotary_angles(positions, self.d_head, self.rotary_scaling)
            key = rotate(key, *angles)
            if view is not None and view.wanted is not None:
                angles = rotary_angles(view.asking[:, None], self.d_head, self.rotary_scaling)
            query = rotate(query, *angles)
        return self._attended(query, key, value, scope).transpose(1, 2).flatten(2)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, scope: Scope | None) -> Tensor:
        """`(batch, head, position, d_head)` of each → the same of the queries."""
        if isinstance(scope, View):
            known = (key, value) if scope.cache is None else scope.cache.extend(self, key, value)
            if not scope.is_causal:
                return viewed_attention(query, *known, scope.mask(self.slopes))
            scope = None
        slopes = None if self.slopes is None else slopes_on(query.device, self.n_heads)
        return causal_attention(query, key, value, slopes, self._dropout, self.form, scope)

    def shared_scope(self, x: Tensor, scope: Scope | None) -> Scope | None:
        """What the layers of a compiled graph share: FlexAttention's mask, where they take that form."""
        plain = scope is None and self.slopes is None  # PyTorch's own causal kernel needs no mask
        if plain or isinstance(scope, View | BlockMask) or not torch.compiler.is_compiling():
            return scope
        chosen = attention_form(x.device, compute_dtype(x), self.d_head, self._dropout)
        form = chosen if self.form == "auto" else self.form
        return block_mask(x.shape[1], scope, x.device) if form == "flex" and not self._dropout else scope

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _projections(self, x: Tensor, scope: Scope | None) -> Sequence[Tensor]:
        """Queries, keys and values, `(batch, position, head * d_head)`; queries only of tokens that are asked for."""
        asked = select_queries(x, scope)
        if asked is x or not isinstance(self.qkv, nn.Linear):  # what inference packed can't be split
            query, key, value = self.qkv(x).chunk(3, dim=-1)
            return select_queries(query, scope), key, value
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

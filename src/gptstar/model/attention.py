"""Causal self-attention, and which of its fast forms computes it."""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

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
from gptstar.model.positions.base import Bias, Pairs, Positions, Scaling
from gptstar.model.view import Scope, View, select_queries

if TYPE_CHECKING:
    from gptstar.model.config import GPTConfig

WEIGHTS_AT_ONCE = 2**22
"""Weights that `Attention.weights` makes at once: 16 MiB in float32, in one query at least."""


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | Bias | None = None,
    dropout: float = 0.0,
    form: AttentionForm = "auto",
    documents: Tensor | BlockMask | None = None,
) -> Tensor:
    """Causal attention, with shapes as in `gptstar.model.kernels`.

    Args:
        bias: slopes; or a table `(head, distance)`, for `flex` only; or a function that gives the bias of pairs, which
            has one form only; None for no bias.
        form: how to compute; without a bias `bias`, `columns` and `flex` are all PyTorch's kernel for plain causal
            attention, and with documents `bias` and `columns` are `attention_within_documents`.
        documents: also the mask that `block_mask` makes of them for FlexAttention, so that layers can share it.
    """
    if bias is not None and not isinstance(bias, Tensor):
        assert not isinstance(documents, BlockMask)
        return biased_attention(query, key, value, bias, dropout, documents)
    slopes = bias
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
    """Attention of queries `(batch, head, query, d_head)` to the keys of a view.

    Keys and values may be of a wider type than queries, as a cache keeps them.

    Args:
        mask: `(batch or 1, head or 1, query, key)`, bool, or float32 to add to scores; None where all keys count.
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
    """Multi-head causal self-attention.

    Args:
        shared: parameters of positions that layers share, which their owner registers.
    """

    def __init__(self, config: "GPTConfig", shared: nn.Module | None) -> None:
        super().__init__()
        self.n_heads, self.d_head, self.dropout = config.n_heads, config.head_width, config.dropout
        self.positions = config.positions
        self.form: AttentionForm = "auto"
        self.qkv = nn.Linear(config.d_model, 3 * self.n_heads * self.d_head)
        self.out = nn.Linear(self.n_heads * self.d_head, config.d_model)
        parameters = self.positions.parameters(config) if self.positions.per_layer else shared
        self._of_positions = (parameters,)  # in a tuple, so that it is not registered as each layer's
        if self.positions.per_layer:
            self.add_module(self.positions.name_in_model, parameters)

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """`(batch, position, d_model)` → the same shape, or that of the tokens that a view selects."""
        query, key, value = self._projections(x, scope)
        return self.out(self.mixed(x, query, key, value, scope))

    def mixed(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, scope: Scope | None) -> Tensor:
        """Values by the weights of attention, before the last projection: `(batch, query, head * d_head)`.

        Args:
            x, scope: as `forward` takes them; positions may read the input.
            query: `(batch, query, head * d_head)`, of the tokens whose output is needed.
            key: `(batch, position, head * d_head)`; `value` likewise.
        """
        per_token = self.positions.per_token(x, self._of_positions[0])
        query, key, value = map(self._by_head, (query, key, value))
        if isinstance(scope, View):
            query_at, key_at = scope.selected_positions, scope.queries
        else:
            query_at = key_at = torch.arange(key.shape[2], device=key.device)[None]
        query, key = self.positions.rotate(query, key, query_at, key_at)
        return self._attended(query, key, value, scope, per_token).transpose(1, 2).flatten(2)

    def weights(self, x: Tensor, first: int = 0) -> Iterator[tuple[Pairs, Tensor]]:
        """Yield the weights of attention by blocks of queries, so that memory grows with the length. For measurements.

        Args:
            x: `(batch, position, d_model)`, the normed input of texts from their beginnings.
            first: the first query; the queries are all from there on.

        Yields:
            A block's queries with their keys, which are all tokens up to the block's last, and `(batch, head, query,
            key)`, 0 where a query does not attend.
        """
        query, key, _ = map(self._by_head, self._projections(x, None))
        at = torch.arange(x.shape[1], device=x.device)[None]
        query, key = self.positions.rotate(query, key, at, at)
        per_token = self.positions.per_token(x, self._of_positions[0])
        start = first
        while start < x.shape[1]:
            stop = min(x.shape[1], start + max(1, WEIGHTS_AT_ONCE // (query.shape[0] * self.n_heads * x.shape[1])))
            queries, keys = at[:, start:stop], at[:, :stop]
            pairs = Pairs(queries, keys, queries[:, :, None] >= keys[:, None], is_run=True)
            scores = query[:, :, start:stop] @ key[:, :, :stop].transpose(2, 3) / math.sqrt(self.d_head)
            if self.positions.adds_bias:
                scores = scores + self._bias_of_pairs(per_token, pairs)
            hidden = ~pairs.mask[:, None]
            yield pairs, torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
            start = stop

    def _by_head(self, x: Tensor) -> Tensor:
        """`(batch, position, head * d_head)` → `(batch, head, position, d_head)`."""
        return x.view(*x.shape[:2], self.n_heads, self.d_head).transpose(1, 2)

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, scope: Scope | None, per_token: Tensor | None
    ) -> Tensor:
        """`(batch, head, position, d_head)` of each → the same of the queries."""
        if isinstance(scope, View):
            known: Sequence[Tensor] = (key, value) if per_token is None else (key, value, per_token)
            if scope.cache is not None:
                known = scope.cache.extend(self, *known)
            if not scope.is_causal:
                mask = self._view_mask(scope, None if per_token is None else known[2])
                return viewed_attention(query, known[0], known[1], mask)
            scope = None
        return causal_attention(query, key, value, self._bias(query, per_token), self._dropout, self.form, scope)

    def _bias(self, query: Tensor, per_token: Tensor | None) -> Tensor | Bias | None:
        """Return the bias that `causal_attention` takes."""
        if not self.positions.adds_bias:
            return None
        slopes = self.positions.slopes(self.n_heads, query.device)
        if slopes is not None:
            return slopes
        if self.positions.is_of_distance and self._is_flex(query.device, query.dtype):
            distance = torch.arange(query.shape[2], device=query.device)
            return self.positions.by_distance(distance, self.n_heads, self._of_positions[0])
        return functools.partial(self._bias_of_pairs, per_token)

    def _bias_of_pairs(self, per_token: Tensor | None, pairs: Pairs) -> Tensor:
        """Return the bias of pairs, whose keys are the first of those that `per_token` holds."""
        of_keys = None if per_token is None else per_token[:, :, : pairs.keys.shape[1]]
        return self.positions.bias(pairs, self.n_heads, self._of_positions[0], of_keys)

    def _view_mask(self, view: View, per_token: Tensor | None) -> Tensor | None:
        """Return the mask that `viewed_attention` takes; layers share it where it is the same in all."""
        if not self.positions.adds_bias:
            mask = view.attention_mask()
            return None if mask is None else mask[:, None]
        is_shared = not (self.positions.per_layer or self.positions.reads_input)
        bias = functools.partial(self._bias_of_pairs, per_token)
        return view.biased_mask(bias, self.positions if is_shared else None)

    def shared_scope(self, x: Tensor, scope: Scope | None) -> Scope | None:
        """Return what the layers of a compiled graph share: FlexAttention's mask, where they take that form."""
        if isinstance(scope, View | BlockMask) or not torch.compiler.is_compiling():
            return scope
        if scope is None and not self.positions.adds_bias:  # PyTorch's own causal kernel needs no mask
            return scope
        return block_mask(x.shape[1], scope, x.device) if self._is_flex(x.device, compute_dtype(x)) else scope

    def _is_flex(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether FlexAttention computes causal attention."""
        chosen = attention_form(device, dtype, self.d_head, self._dropout) if self.form == "auto" else self.form
        if chosen != "flex" or self._dropout:
            return False
        if not self.positions.adds_bias or self.positions.slopes(self.n_heads, device) is not None:
            return True
        parameters = self._of_positions[0]
        learns = (
            torch.is_grad_enabled() and parameters is not None and any(p.requires_grad for p in parameters.parameters())
        )
        return self.positions.is_of_distance and not learns

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _projections(self, x: Tensor, scope: Scope | None) -> Sequence[Tensor]:
        """Queries, keys and values, `(batch, position, head * d_head)`; queries only of tokens with an output."""
        selected = select_queries(x, scope)
        if selected is x or not isinstance(self.qkv, nn.Linear):  # what inference packed can't be split
            query, key, value = self.qkv(x).chunk(3, dim=-1)
            return select_queries(query, scope), key, value
        width = self.n_heads * self.d_head
        (of_query, of_key), (bias, key_bias) = (each.tensor_split([width]) for each in self.qkv.parameters())
        return nn.functional.linear(selected, of_query, bias), *nn.functional.linear(x, of_key, key_bias).chunk(2, -1)


@contextlib.contextmanager
def scaled_positions(model: nn.Module, scaling: Scaling) -> Iterator[None]:
    """Stretch a model's positions within the context. The scaling is not part of the model, nor saved with it.

    Raises:
        ValueError: the kind of positions doesn't know the scaling.
    """
    holders: list[Any] = [each for each in model.modules() if isinstance(getattr(each, "positions", None), Positions)]
    before = [holder.positions for holder in holders]
    scaled = [positions.scaled(scaling) for positions in before]
    try:
        for holder, positions in zip(holders, scaled, strict=True):
            holder.positions = positions
        yield
    finally:
        for holder, positions in zip(holders, before, strict=True):
            holder.positions = positions

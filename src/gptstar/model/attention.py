"""Causal self-attention, and the choice among its fast implementations."""

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
from gptstar.model.kernels.windowed import Restriction, windowed_attention
from gptstar.model.positions.base import Bias, Pairs, Positions, Scaling, places_in_documents
from gptstar.model.view import Scope, SharedMask, View, select_queries

if TYPE_CHECKING:
    from gptstar.model.config import GPTConfig

WEIGHTS_AT_ONCE = 2**22
"""Attention weights that `Attention.weights` computes at once: 16 MiB in float32. One query may need more."""


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | Bias | None = None,
    dropout: float = 0.0,
    form: AttentionForm = "auto",
    documents: Tensor | BlockMask | None = None,
) -> Tensor:
    """Compute causal attention; `gptstar.model.kernels` states the shapes.

    Args:
        bias: ALiBi's slopes `(head,)`; or a table `(head, distance)`, for `flex` only; or a function that returns the
            bias of pairs, which ignores `form`; or None for no bias.
        form: the implementation. Without a bias, `bias`, `columns` and `flex` all call PyTorch's kernel for plain
            causal attention. With documents, `bias` and `columns` both call `attention_within_documents`.
        documents: the document of each position, or the mask that `block_mask` made from them, which layers can share.
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
    """Compute attention of queries `(batch, head, query, d_head)` to the keys of a view.

    A KV cache may hold keys and values in a wider type than the queries have.

    Args:
        mask: `(batch or 1, head or 1, query, key)`, bool, or float32 to add to scores; None if every query attends to
            every key.
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
    """Compute attention of one query per row; a CPU multiplies keys by vector twice as fast as vector by keys."""
    scores = (key @ (query * query.shape[3] ** -0.5).transpose(2, 3)).transpose(2, 3)  # (batch, head, 1, key)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    return torch.softmax(scores, dim=-1) @ value


class Attention(nn.Module):
    """Multi-head causal self-attention.

    Args:
        shared: the parameters of positions that all layers share; the model registers them.
    """

    def __init__(self, config: "GPTConfig", shared: nn.Module | None) -> None:
        super().__init__()
        self.n_heads, self.d_head, self.dropout = config.n_heads, config.head_width, config.dropout
        self.positions, self.mask, self.scale = config.positions, config.mask, config.softmax_scale
        self.form: AttentionForm = "auto"
        self.qkv = nn.Linear(config.d_model, 3 * self.n_heads * self.d_head)
        self.out = nn.Linear(self.n_heads * self.d_head, config.d_model)
        parameters = self.positions.parameters(config) if self.positions.per_layer else shared
        self._of_positions = (parameters,)  # in a tuple, so that it is not registered as each layer's
        if self.positions.per_layer:
            self.add_module(self.positions.name_in_model, parameters)
        self.softmax_scale = self.scale.parameters(self.n_heads)

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """Map `(batch, position, d_model)` to the same shape, or to the shape of the tokens that a view selects."""
        query, key, value = self._projections(x, scope)
        return self.out(self.mixed(x, query, key, value, scope))

    def mixed(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, scope: Scope | None) -> Tensor:
        """Return the heads' outputs before the last projection: `(batch, query, head * d_head)`.

        Args:
            x, scope: the arguments of `forward`; some kinds of positions read the input.
            query: `(batch, query, head * d_head)`, for the tokens whose output is needed.
            key: `(batch, position, head * d_head)`; `value` has the same shape.
        """
        scope = scope.under(self.mask) if isinstance(scope, View) else scope
        per_token = self.positions.per_token(x, self._of_positions[0])
        query, key, value = map(self._by_head, (query, key, value))
        if isinstance(scope, View):
            query_at, key_at = scope.selected_positions, scope.queries
        else:
            query_at = key_at = torch.arange(key.shape[2], device=key.device)[None]
        query, key = self.positions.rotate(query, key, query_at, key_at)
        if self.scale.counts_keys:
            query = self.scale.scaled(query, self._n_visible(scope, key_at), self.softmax_scale)
        return self._attended(query, key, value, scope, per_token).transpose(1, 2).flatten(2)

    def weights(self, x: Tensor, first: int = 0) -> Iterator[tuple[Pairs, Tensor]]:
        """Yield the attention weights, one block of queries at a time, so that memory grows linearly with the length.

        Only measurements use this.

        Args:
            x: `(batch, position, d_model)`, the normed input; each row begins at the beginning of its text.
            first: the position of the first query; the queries are all positions from there on.

        Yields:
            The pairs of a block: its queries, and as keys all tokens up to its last query. Then their weights `(batch,
            head, query, key)`, which are 0 where a query does not attend to a key.
        """
        query, key, _ = map(self._by_head, self._projections(x, None))
        at = torch.arange(x.shape[1], device=x.device)[None]
        query, key = self.positions.rotate(query, key, at, at)
        query = self.scale.scaled(query, self.mask.n_visible(at), self.softmax_scale)
        per_token = self.positions.per_token(x, self._of_positions[0])
        start = first
        while start < x.shape[1]:
            stop = min(x.shape[1], start + max(1, WEIGHTS_AT_ONCE // (query.shape[0] * self.n_heads * x.shape[1])))
            queries, keys = at[:, start:stop], at[:, :stop]
            pairs = Pairs(queries, keys, queries[:, :, None] >= keys[:, None], is_run=True)
            scores = query[:, :, start:stop] @ key[:, :, :stop].transpose(2, 3) / math.sqrt(self.d_head)
            if self.positions.adds_bias:
                scores = scores + self._bias_of_pairs(per_token, pairs)
            hidden = ~(pairs.mask & self.mask.visible(queries, keys))[:, None]
            yield pairs, torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
            start = stop

    def _by_head(self, x: Tensor) -> Tensor:
        """Reshape `(batch, position, head * d_head)` to `(batch, head, position, d_head)`."""
        return x.view(*x.shape[:2], self.n_heads, self.d_head).transpose(1, 2)

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, scope: Scope | None, per_token: Tensor | None
    ) -> Tensor:
        """Choose an implementation and call it: three times `(batch, head, position, d_head)` → the queries' shape."""
        if isinstance(scope, View):
            known: Sequence[Tensor] = (key, value) if per_token is None else (key, value, per_token)
            if scope.cache is not None:
                known = scope.cache.extend(self, *known)
            if not scope.is_causal:
                mask = self._view_mask(scope, None if per_token is None else known[2])
                return viewed_attention(query, known[0], known[1], mask)
            scope = None
        bias, n_positions = self._bias(query, per_token), query.shape[2]
        scope = scope.blocks if isinstance(scope, SharedMask) else scope
        if self.mask.hides(n_positions) and not isinstance(scope, BlockMask):
            if not self._is_flex(query.device, query.dtype):
                restriction = Restriction.within(scope, self.mask)
                return windowed_attention(query, key, value, bias, restriction, self._dropout)
            scope = block_mask(n_positions, scope, query.device, self.mask)
        return causal_attention(query, key, value, bias, self._dropout, self.form, scope)

    def _n_visible(self, scope: Scope | None, places: Tensor) -> Tensor:
        """Count the keys that each query attends to: `(batch or 1, query)`, int64.

        Args:
            places: `(1, position)`, int64: positions in the text; used where no documents are given.
        """
        if isinstance(scope, View) and not scope.is_causal:
            return scope.n_visible()
        documents = scope.documents if isinstance(scope, SharedMask) else scope
        return self.mask.n_visible(places_in_documents(documents) if isinstance(documents, Tensor) else places)

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
        """Return the bias of pairs; their keys are the first ones that `per_token` holds."""
        of_keys = None if per_token is None else per_token[:, :, : pairs.keys.shape[1]]
        return self.positions.bias(pairs, self.n_heads, self._of_positions[0], of_keys)

    def _view_mask(self, view: View, per_token: Tensor | None) -> Tensor | None:
        """Return the mask that `viewed_attention` takes; layers share it if it is the same in all of them."""
        if not self.positions.adds_bias:
            mask = view.attention_mask()
            return None if mask is None else mask[:, None]
        is_shared = not (self.positions.per_layer or self.positions.reads_input)
        bias = functools.partial(self._bias_of_pairs, per_token)
        return view.biased_mask(bias, self.positions if is_shared else None)

    def shared_scope(self, x: Tensor, scope: Scope | None) -> Scope | None:
        """Return the scope that the layers of a compiled graph share, with FlexAttention's mask if they use that."""
        if isinstance(scope, View | BlockMask | SharedMask) or not torch.compiler.is_compiling():
            return scope
        needs_mask = self.positions.adds_bias or self.mask.hides(x.shape[1])
        if scope is None and not needs_mask:  # PyTorch's own causal kernel needs none
            return scope
        if not self._is_flex(x.device, compute_dtype(x)):
            return scope
        blocks = block_mask(x.shape[1], scope, x.device, self.mask)
        return SharedMask(blocks, scope) if scope is not None and self.scale.counts_keys else blocks

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
        """Return queries, keys and values `(batch, position, head * d_head)`; queries only of tokens with an output."""
        selected = select_queries(x, scope)
        if selected is x or not isinstance(self.qkv, nn.Linear):  # weights packed for inference can't be split
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

"""The scale of attention scores before the softmax. Exported models carry this file."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gptstar.fields import Count

UNKNOWN_CONTEXT = 512
"""The training context that is assumed if none is known."""


@dataclass(frozen=True)
class SoftmaxScale:
    """The standard scale, `1 / sqrt(d_head)`; subclasses multiply it by another factor.

    Attributes:
        counts_keys: whether the factor depends on the number of keys.
    """

    counts_keys: ClassVar[bool] = False

    def trained_with(self, context_length: int) -> "SoftmaxScale":
        """Return the scale for a training context of `context_length` tokens; the standard one ignores it."""
        return self

    def parameters(self, n_heads: int) -> nn.Module | None:
        """Make the parameters of one layer; None if there are none."""
        return None

    def n_params(self, n_heads: int) -> int:
        """Count the parameters of one layer."""
        return 0

    def initial(self, shape: torch.Size) -> Tensor:
        """Draw a parameter's initial value on the CPU."""
        raise NotImplementedError

    def scaled(self, query: Tensor, n_keys: Tensor, parameters: Any) -> Tensor:
        """Multiply queries `(batch, head, query, d_head)` by the factor; the result has their shape and type.

        Args:
            n_keys: `(batch or 1, query)`, int64: the number of keys that each query attends to, itself included.
            parameters: the layer's parameters, as `parameters` made them.
        """
        return query


class SSMaxParameters(nn.Module):
    """SSMax's `s` for each head of a layer, `(head,)`. It gets no weight decay."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.empty(n_heads))


@dataclass(frozen=True)
class SSMax(SoftmaxScale):
    """SSMax: `q k / sqrt(d_head)` is multiplied by `s ln n`, where n is the number of keys that the query attends to.

    s is learned for each head of each layer, without weight decay. It starts at `1 / ln L`, where L is the training
    context, so that initially a query that attends to L keys gets the weights of a plain softmax. n counts the keys
    within the document, and within the attention window if there is one.

    SSMax scales the products of queries and keys, but not a positional bias. The paper scales all scores; its models
    are rotary, so their scores are these products. ALiBi and similar kinds define their bias for a plain softmax:
    scaled by `s ln n`, their slopes would become steeper in longer texts, and would hide what SSMax is meant to find.

    Source: Nakanishi, "Scalable-Softmax Is Superior for Attention", 2025. We read its abstract and reports about it.

    Attributes:
        context_length: L in tokens; a training run uses its own context length, other models use 512.
    """

    context_length: Count | None = None

    counts_keys: ClassVar[bool] = True

    def trained_with(self, context_length: int) -> "SSMax":
        """Return the scale with L set to the training context, unless L is given."""
        return self if self.context_length is not None else replace(self, context_length=context_length)

    def parameters(self, n_heads: int) -> nn.Module:
        """Make the parameter s of one layer."""
        return SSMaxParameters(n_heads)

    def n_params(self, n_heads: int) -> int:
        """Count one parameter per head."""
        return n_heads

    def initial(self, shape: torch.Size) -> Tensor:
        """Return `1 / ln L` for each head; an L of 1 counts as 2, to avoid dividing by 0."""
        context_length = self.context_length or UNKNOWN_CONTEXT
        return torch.full(shape, 1 / math.log(max(2, context_length)), device="cpu")

    def scaled(self, query: Tensor, n_keys: Tensor, parameters: Any) -> Tensor:
        """Multiply queries by `s ln n`, computed in float32 or wider."""
        wide = torch.promote_types(query.dtype, torch.float32)
        factor = parameters.s.to(wide)[:, None] * n_keys[:, None].to(wide).log()  # (batch or 1, head, query)
        return (query.to(wide) * factor[..., None]).to(query.dtype)

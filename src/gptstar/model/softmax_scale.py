"""What multiplies the products of queries and keys before the softmax. Exported models carry this file."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gptstar.fields import Count

UNKNOWN_CONTEXT = 512
"""The training context where none is known."""


@dataclass(frozen=True)
class SoftmaxScale:
    """Nothing beside `1 / sqrt(d_head)`.

    Attributes:
        counts_keys: whether the class multiplies by what depends on the number of keys.
    """

    counts_keys: ClassVar[bool] = False

    def trained_with(self, context_length: int) -> "SoftmaxScale":
        """Return the same for a training context of so many tokens, where it depends on that."""
        return self

    def parameters(self, n_heads: int) -> nn.Module | None:
        """Make the parameters of a layer."""
        return None

    def n_params(self, n_heads: int) -> int:
        """Count the parameters of a layer."""
        return 0

    def initial(self, shape: torch.Size) -> Tensor:
        """Draw a parameter on the CPU."""
        raise NotImplementedError

    def scaled(self, query: Tensor, n_keys: Tensor, parameters: Any) -> Tensor:
        """Multiply queries `(batch, head, query, d_head)`, in their type.

        Args:
            n_keys: `(batch or 1, query)`, int64: the number of keys that each query attends to, itself included.
            parameters: those of the layer.
        """
        return query


class SSMaxParameters(nn.Module):
    """s of each head of a layer, `(head,)`. Not a matrix, so it has no weight decay."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.empty(n_heads))


@dataclass(frozen=True)
class SSMax(SoftmaxScale):
    """SSMax: `q k / sqrt(d_head)` is multiplied by `s ln n`, where n is the number of keys that the query attends to.

    s is learned for each head of each layer, without weight decay. It starts at `1 / ln L`, L being the training
    context, so that at the start a query that attends to L keys has the softmax's own weights. n counts the keys within
    the document, and within the window of attention where there is one.

    The products of queries and keys are multiplied, a bias of positions is not. The paper's definition multiplies all
    logits, but its models are rotary, whose logits are these products, and it is computed by multiplying queries. ALiBi
    and its relatives state their bias on the scale of a plain softmax. Multiplied by `s ln n`, their slopes would
    become steeper as the text becomes longer, and hide more of what SSMax is to find.

    Source: Nakanishi, "Scalable-Softmax Is Superior for Attention", 2025; its abstract and reports of it were read.

    Attributes:
        context_length: L. A training run takes its own; a model that is built without one takes 512.
    """

    context_length: Count | None = None

    counts_keys: ClassVar[bool] = True

    def trained_with(self, context_length: int) -> "SSMax":
        """Let s start at this training context, unless it is given."""
        return self if self.context_length is not None else replace(self, context_length=context_length)

    def parameters(self, n_heads: int) -> nn.Module:
        """Make a layer's s."""
        return SSMaxParameters(n_heads)

    def n_params(self, n_heads: int) -> int:
        """One per head."""
        return n_heads

    def initial(self, shape: torch.Size) -> Tensor:
        """`1 / ln L`; of a context of one token, which has one key, that of two."""
        context_length = self.context_length or UNKNOWN_CONTEXT
        return torch.full(shape, 1 / math.log(max(2, context_length)), device="cpu")

    def scaled(self, query: Tensor, n_keys: Tensor, parameters: Any) -> Tensor:
        """Multiply queries by `s ln n`, computed in float32 or wider."""
        wide = torch.promote_types(query.dtype, torch.float32)
        factor = parameters.s.to(wide)[:, None] * n_keys[:, None].to(wide).log()  # (batch or 1, head, query)
        return (query.to(wide) * factor[..., None]).to(query.dtype)

"""The gradient of the tied embedding, which a model reads at both its ends, made in one tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TiedGradient:
    """Of one pass through a model: what the output head has made is what the rows of its tokens are added to.

    Left to autograd each end makes a gradient as large as the embedding, one of them all but zeros, and a third pass
    over memory adds them up.
    """

    def __init__(self) -> None:
        self.of_head: Tensor | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what the two ends share is no tensor of a graph
    def embed(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """`(batch, position)`, int64 → `(batch, position, d_model)`; its backward pass is the one to come last."""
        embedded: Tensor = _Embed.apply(weight, tokens, self)  # type: ignore[no-untyped-call]
        return embedded


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, tied: TiedGradient) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.tied = tied
        return torch.nn.functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        of_weight, ctx.tied.of_head = ctx.tied.of_head, None
        return of_weight.index_add_(0, tokens.flatten(), grad.flatten(0, 1).to(of_weight.dtype)), None, None

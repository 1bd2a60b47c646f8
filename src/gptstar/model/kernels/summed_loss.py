"""A summed loss for CPUs, which computes its gradient in the forward pass, the tied embedding's in one tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptstar.model.kernels.choice import compute_dtype
from gptstar.model.loss import LOGITS_AT_ONCE, aligned_rows

SOFTMAX_ROWS = 16
"""Tokens whose softmax is computed at once: as many as fit a CPU's cache in float32."""

VOCABULARY_BLOCK = 4096
"""Tokens of the vocabulary in one matrix product; whole rows of logits would exceed a CPU's cache."""


class TiedGradient:
    """The gradient of an embedding that is also the output head.

    The embedding adds its gradient into the head's buffer. Autograd would make two gradients as large as the embedding,
    one of them almost entirely zeros, and add them in a third pass over memory.
    """

    of_head: Tensor | None = None

    def embed(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Embed tokens: `(batch, position, d_model)`. Its backward pass must come after the output head's."""
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


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, tied: TiedGradient | None = None) -> Tensor:
    """Return the sum of the losses of all target tokens in nats, a float32 scalar, and compute its gradient at once.

    The gradient by a token's logits, `softmax(logits) - one_hot(target)`, follows from the logits. So each chunk's
    logits are computed once, and are turned into their gradient in place. It serves a single backward pass. Under
    `torch.no_grad` no gradient is computed.

    Args:
        hidden: `(batch, position, d_model)`, the normed output of the last block.
        weight: `(n_vocab, d_model)`, the tied embedding.
        targets: `(batch, position)`, int64; negative where there is none.
        tied: the object that embedded the tokens with the same weight; it takes over the weight's gradient.

    Raises:
        RuntimeError: a second backward pass was requested.

    Source: Hsu et al., "Liger Kernel", 2024, section 3.2.
    """
    flat, dtype = hidden.flatten(0, 1), compute_dtype(hidden)
    records = torch.is_grad_enabled()  # within a Function it never is
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
            flat, weight, targets.flatten(), dtype, tied, records
        )
    return loss


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        tied: TiedGradient | None,
        records: bool,
    ) -> Tensor:
        n_tokens, n_vocab = len(hidden), len(weight)
        room = aligned_rows(n_vocab)
        chunk = max(1, LOGITS_AT_ONCE // room)
        blocks = [slice(row, row + VOCABULARY_BLOCK) for row in range(0, n_vocab, VOCABULARY_BLOCK)]
        learns = records and any(ctx.needs_input_grad)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        cast_weight = weight.to(dtype)
        of_hidden = torch.zeros_like(hidden, dtype=wide) if learns else None
        of_weight = torch.empty_like(weight, dtype=wide if n_tokens > chunk else None) if learns else None
        total = hidden.new_zeros((), dtype=torch.float64)
        for start in range(0, n_tokens, chunk):
            part = hidden[start : start + chunk].to(dtype)
            padded = part.new_empty(len(part), room)
            padded[:, n_vocab:] = 0  # some CPUs' bfloat16 products read one value past an odd row, and 0 * nan is nan
            logits = padded[:, :n_vocab]  # (token, n_vocab)
            for rows in blocks:
                torch.mm(part, cast_weight[rows].t(), out=logits[:, rows])
            total += _sum_of_losses(logits, targets[start : start + chunk], to_gradient=learns)
            if of_hidden is not None and of_weight is not None:
                for rows in blocks:
                    of_hidden[start : start + chunk] += logits[:, rows] @ cast_weight[rows]
                    of_rows = logits[:, rows].t() @ part
                    if start == 0:
                        of_weight[rows] = of_rows
                    else:
                        of_weight[rows] += of_rows
        if of_weight is not None and not n_tokens:
            of_weight.zero_()
        if learns:
            ctx.save_for_backward(of_hidden, of_weight)
            ctx.dtypes, ctx.tied, ctx.used_up = (hidden.dtype, weight.dtype), tied, False
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        if ctx.used_up:
            raise RuntimeError('a summed loss allows one backward pass: compute it again, or use reduction="none"')
        ctx.used_up = True
        of_hidden, of_weight = ctx.saved_tensors
        # In place, because one of them is as large as the embedding.
        of_hidden, of_weight = (
            each.mul_(grad).to(dtype) for each, dtype in zip((of_hidden, of_weight), ctx.dtypes, strict=True)
        )
        if ctx.tied is None:
            return of_hidden, of_weight, None, None, None, None
        ctx.tied.of_head = of_weight
        return of_hidden, None, None, None, None, None


def _sum_of_losses(logits: Tensor, targets: Tensor, *, to_gradient: bool) -> Tensor:
    """Sum the losses of logits `(token, n_vocab)`; with `to_gradient`, turn the logits into their gradient in place."""
    losses = []
    for row_logits, row_targets in zip(
        torch.split(logits, SOFTMAX_ROWS), torch.split(targets, SOFTMAX_ROWS), strict=True
    ):
        counted = (row_targets >= 0)[:, None]  # (token, 1)
        column = row_targets.clamp(min=0)[:, None]
        wide = torch.promote_types(logits.dtype, torch.float32)
        probabilities = torch.softmax(row_logits, dim=-1, dtype=wide)
        # The likeliest token's logit and probability give the normaliser; the target's probability may underflow to 0.
        normaliser = row_logits.amax(-1, keepdim=True).to(wide) - probabilities.amax(-1, keepdim=True).log()
        losses.append((normaliser - row_logits.gather(1, column)).where(counted, 0.0).sum())
        if to_gradient:
            probabilities.scatter_add_(1, column, probabilities.new_full(column.shape, -1.0))
            row_logits.copy_(probabilities)
    if to_gradient and bool((targets < 0).any()):
        logits.masked_fill_((targets < 0)[:, None], 0.0)
    return torch.stack(losses).sum()

"""Cross-entropy of the next token that never holds the logits of a whole batch."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from gptstar.model.tied import TiedGradient

CHUNK_LOGITS = 2**26
"""Logits held at once (128 MiB in bfloat16)."""

ALIGNED = 128
"""Logits of a token take room for a multiple of this: 50,257 is odd, and matrix products want aligned rows."""

SOFTMAX_ROWS = 16
"""Tokens whose logits a CPU turns into probabilities at once, in float32: so many fit its cache."""

VOCABULARY_BLOCK = 4096
"""Tokens of the vocabulary in one product on a CPU: whole rows of logits miss its cache."""


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target token, in nats; 0 where there is no target.

    A batch whose logits fit one chunk is computed at once; a larger one chunk by chunk, each computed again in the
    backward pass rather than kept: a third more work in the head for memory that no longer grows with the batch.
    `summed_loss` needs no such work, but gives no loss by token.

    Args:
        hidden: `(batch, position, d_model)`, the normed output of the last block.
        weight: `(n_vocab, d_model)`, the tied embedding.
        targets: `(batch, position)`, int64; negative where there is none.

    Returns:
        `(batch, position)`, float32.
    """
    flat, flat_targets = hidden.flatten(0, 1), targets.flatten()  # (token, d_model), (token,)
    chunk = max(1, CHUNK_LOGITS // weight.shape[0])
    if len(flat) <= chunk:
        return _chunk_losses(flat, weight, flat_targets).view_as(targets)
    losses = [
        checkpoint(_chunk_losses, part, weight, part_targets, use_reentrant=False)
        for part, part_targets in zip(torch.split(flat, chunk), torch.split(flat_targets, chunk), strict=True)
    ]
    return torch.cat(losses).view_as(targets)


def _chunk_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(linear(hidden, weight).float(), targets.clamp(min=0), reduction="none")
    return losses.where(targets >= 0, 0.0)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it writes into parts of tensors
def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, tied: TiedGradient | None = None) -> Tensor:
    """The sum of the losses of all target tokens, in nats, with its gradient made in the same pass.

    The gradient of a sum by a token's logits is known with them: `softmax(logits) - one_hot(target)`. So each chunk's
    logits are made once and become their own gradient in place. It is used up by one backward pass; where no gradients
    are recorded, as under `torch.no_grad`, none is made.

    Args:
        hidden: `(batch, position, d_model)`, the normed output of the last block.
        weight: `(n_vocab, d_model)`, the tied embedding.
        targets: `(batch, position)`, int64; negative where there is none.
        tied: by which the tokens were embedded with the same weight; it gets the weight's gradient, and passes it on.

    Returns:
        A scalar, float32.

    Raises:
        RuntimeError: in a second backward pass.

    Source: Hsu et al., "Liger Kernel", 2024, section 3.2.
    """
    flat, device_type = hidden.flatten(0, 1), hidden.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else flat.dtype
    records = torch.is_grad_enabled()  # within a Function it never is
    with torch.autocast(device_type, enabled=False):
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
        room = -(-n_vocab // ALIGNED) * ALIGNED
        chunk = max(1, CHUNK_LOGITS // room)
        block = VOCABULARY_BLOCK if weight.device.type == "cpu" else n_vocab
        blocks = [slice(row, row + block) for row in range(0, n_vocab, block)]
        learns = records and any(ctx.needs_input_grad)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        cast_weight = weight.to(dtype)
        of_hidden = torch.zeros_like(hidden, dtype=wide) if learns else None
        of_weight = torch.empty_like(weight, dtype=wide if n_tokens > chunk else None) if learns else None
        total = hidden.new_zeros((), dtype=torch.float64)
        for start in range(0, n_tokens, chunk):
            part = hidden[start : start + chunk].to(dtype)
            padded = part.new_empty(len(part), room)
            padded[:, n_vocab:] = 0  # of odd rows some CPUs' bfloat16 products read one more, and 0 times nan is nan
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
            raise RuntimeError('a summed loss has one backward pass: compute it again, or take reduction="none"')
        ctx.used_up = True
        of_hidden, of_weight = ctx.saved_tensors
        # In place: one of them is as large as the model's largest.
        of_hidden, of_weight = (
            each.mul_(grad).to(dtype) for each, dtype in zip((of_hidden, of_weight), ctx.dtypes, strict=True)
        )
        if ctx.tied is None:
            return of_hidden, of_weight, None, None, None, None
        ctx.tied.of_head = of_weight
        return of_hidden, None, None, None, None, None


def _sum_of_losses(logits: Tensor, targets: Tensor, *, to_gradient: bool) -> Tensor:
    """The sum of the losses of logits `(token, n_vocab)`, which where asked become their gradient in place."""
    rows = SOFTMAX_ROWS if logits.device.type == "cpu" else len(logits)
    losses = []
    for row_logits, row_targets in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
        counted = (row_targets >= 0)[:, None]  # (token, 1)
        column = row_targets.clamp(min=0)[:, None]
        wide = torch.promote_types(logits.dtype, torch.float32)
        probabilities = torch.softmax(row_logits, dim=-1, dtype=wide)
        # The likeliest token's logit and probability give the normaliser; the target's may be too small to have a log.
        normaliser = row_logits.amax(-1, keepdim=True).to(wide) - probabilities.amax(-1, keepdim=True).log()
        losses.append((normaliser - row_logits.gather(1, column)).where(counted, 0.0).sum())
        if to_gradient:
            probabilities.scatter_add_(1, column, probabilities.new_full(column.shape, -1.0))
            row_logits.copy_(probabilities)
    if to_gradient and (logits.is_cuda or bool((targets < 0).any())):  # a GPU would have to be waited for
        logits.masked_fill_((targets < 0)[:, None], 0.0)
    return torch.stack(losses).sum()

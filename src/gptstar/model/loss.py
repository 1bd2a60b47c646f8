"""The cross-entropy loss of the next token, from the output of the last block."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, pad
from torch.utils.checkpoint import checkpoint

from gptstar.model.kernels.choice import aligns_products

LOGITS_AT_ONCE = 2**26
"""Logits to hold at once, 128 MiB in bfloat16."""

ALIGNED = 128
"""The multiple to which the output head's rows are padded where a device is faster with it: 50,257 is odd."""


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, at_once: int = LOGITS_AT_ONCE) -> Tensor:
    """Return the loss of each target token in nats, `(batch, position)`, float32; 0 where there is no target.

    More than `at_once` logits are computed in pieces, and each piece again in the backward pass. This costs a third
    more work in the output head, and its memory does not grow with the batch.

    Args:
        hidden: `(batch, position, d_model)`, the normed output of the last block.
        weight: `(n_vocab, d_model)`, the tied embedding.
        targets: `(batch, position)`, int64; negative where there is none.
    """
    n_vocab, rows = len(weight), aligned(weight)
    flat, flat_targets = hidden.flatten(0, 1), targets.flatten()  # (token, d_model), (token,)
    piece = max(1, at_once // len(rows))
    if len(flat) <= piece:
        return _losses(flat, rows, n_vocab, flat_targets).view_as(targets)
    piece -= piece % ALIGNED if piece > ALIGNED else 0
    losses = [
        checkpoint(_losses, part, rows, n_vocab, part_targets, use_reentrant=False)
        for part, part_targets in zip(torch.split(flat, piece), torch.split(flat_targets, piece), strict=True)
    ]
    return torch.cat(losses).view_as(targets)


def _losses(hidden: Tensor, rows: Tensor, n_vocab: int, targets: Tensor) -> Tensor:
    """Return the losses `(token,)` of hidden states `(token, d_model)` and targets `(token,)`."""
    logits = linear(hidden, rows).float()  # (token, row)
    if len(rows) > n_vocab:
        added = torch.arange(len(rows), device=rows.device) >= n_vocab
        logits = logits.masked_fill(added, -torch.inf)  # the added rows must not change the loss
    losses = cross_entropy(logits, targets.clamp(min=0), reduction="none")
    return losses.where(targets >= 0, 0.0)


def aligned_rows(n_vocab: int) -> int:
    """Return the number of rows of the padded output head: the next multiple of `ALIGNED`."""
    return -(-n_vocab // ALIGNED) * ALIGNED


def aligned(weight: Tensor) -> Tensor:
    """Pad the output head `(n_vocab, d_model)` with rows of 0 if `aligns_products`: `(row, d_model)`.

    The added rows exist within a forward pass only.
    """
    missing = aligned_rows(len(weight)) - len(weight)
    return pad(weight, (0, 0, 0, missing)) if missing and aligns_products(weight.device) else weight

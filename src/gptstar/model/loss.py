"""Cross-entropy of the next token that never holds the logits of a whole batch."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**26
"""Logits held at once (256 MiB in float32)."""


def _chunk_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(linear(hidden, weight).float(), targets, reduction="none")


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target token, in nats.

    A batch whose logits fit one chunk is computed at once; a larger one chunk by chunk, each computed again in the
    backward pass rather than kept: a third more work in the head for memory that no longer grows with the batch.

    Args:
        hidden: `(batch, position, d_model)`, the normed output of the last block.
        weight: `(n_vocab, d_model)`, the tied embedding.
        targets: `(batch, position)`, int64.

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

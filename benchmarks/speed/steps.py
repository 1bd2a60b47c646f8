"""Steps that all peers share: what is around a model when it trains, or continues a text."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from speed.job import Job, synchronise, timed

Precision = Literal["float32", "bf16", "bf16_weights"]
"""Of products; `bf16` is autocast over float32 weights in training, and weights of that type in use. `bf16_weights`, of
our training alone, computes with a copy of the weights in that type."""


def adamw(model: nn.Module, *, fused: bool | None) -> torch.optim.AdamW:
    """The optimizer of all peers; `fused=None` leaves PyTorch its default."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)


def training_job(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    autocast: bool,
    flops: float,
    n_vocab: int,
    batch: int,
    context: int,
    device: str,
) -> Job:
    """Forward, backward and the optimizer, on new random tokens each time: those learnt by heart give denormals.

    Args:
        loss: the mean loss of `(batch, context)` tokens and their targets.
        autocast: to bfloat16, of the forward pass.
        flops: a token.
    """

    def step() -> None:
        windows = prompt_of(n_vocab, batch, context + 1, device)
        tokens, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        with torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext():
            mean = loss(tokens, targets)
        mean.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    steps = timed(step, device)
    return Job(steps, batch * context, flops=flops, n_params=n_params(model), first_step=steps.first)


def decoding_job(
    continuation: Callable[[], Iterator[object]], *, n_new: int, batch: int, weight_bytes: float, device: str
) -> Job:
    """A round reads the prompt, which is not timed, and then times `n_new` tokens of each row.

    Args:
        continuation: reads the prompt up to its first `next`, and gives each row a token at every other.
        weight_bytes: read for a token of each row.
    """

    def seconds() -> float:
        tokens = continuation()
        next(tokens)
        synchronise(device)
        start = time.perf_counter()
        for _ in range(n_new):
            next(tokens)
        synchronise(device)
        return (time.perf_counter() - start) / n_new

    seconds()
    return Job(seconds, batch, weight_bytes=weight_bytes)


def prompt_of(n_vocab: int, batch: int, length: int, device: str) -> Tensor:
    """`(batch, length)`, int64: a text of tokens at random."""
    return torch.randint(n_vocab, (batch, length), device=device)


def n_params(model: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())

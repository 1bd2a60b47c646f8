"""The loss and gradients of a model and of its graph, compared."""

from collections.abc import Callable

import torch
from torch import Tensor

from gptstar.model import GPT


def batch(n_vocab: int = 211) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets of which some are missing, and documents."""
    tokens = torch.randint(n_vocab, (3, 30))
    targets = tokens[:, 1:].clone()
    targets[0, :4] = targets[2, 16] = -1
    return tokens[:, :-1], targets, (torch.arange(29) > torch.tensor([[4], [17], [28]])).long()


def trained(run: Callable[..., Tensor], model: GPT, *arguments: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """The summed loss and the gradient of every parameter."""
    model.zero_grad()
    loss = run(*arguments, reduction="sum")
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def assert_alike(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], n_targets: int) -> None:
    torch.testing.assert_close(found[0] / n_targets, expected[0] / n_targets, atol=1e-5, rtol=0)
    for mine, its in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine / n_targets, its / n_targets, atol=1e-5, rtol=0)

"""Weights in bfloat16 beside a float32 master: the products read half as much, and nothing is cast in each of them."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from gptstar.model import GPT


class WorkingCopy:
    """A bfloat16 model that computes for a float32 one: its gradients go to the master, the master's weights to it.

    Gradients are added up in float32 at once, over micro-batches too, so bfloat16 rounds each of them and no sum.

    Attributes:
        model: the copy, with the choices that were made by `use` before.

    Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.1.
    """

    def __init__(self, master: GPT) -> None:
        with torch.inference_mode(False):  # a run that goes on may validate first, and what is made there can't learn
            self.model = copy.deepcopy(master).bfloat16()
        self._weights: list[Tensor] = list(self.model.parameters())
        self._masters: list[Tensor] = list(master.parameters())
        for weight, of_master in zip(self._weights, self._masters, strict=True):
            weight.grad = None
            if not weight.requires_grad:
                continue
            weight.register_post_accumulate_grad_hook(_hand_over(of_master))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the master's weights, as after each step."""
        torch._foreach_copy_(self._weights, self._masters)


def _hand_over(of_master: Tensor) -> Callable[[Tensor], None]:
    """What moves a weight's gradient, as soon as it is whole, to the master's parameter."""

    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        if of_master.grad is None:
            of_master.grad = weight.grad.float()
        else:
            of_master.grad += weight.grad
        weight.grad = None

    return move

"""A bfloat16 working copy of a float32 model: matrix products read half the bytes and need no cast."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from gptstar.model import GPT


class WorkingCopy:
    """A bfloat16 model that computes losses and gradients for a float32 master, which the optimizer updates.

    Each gradient is added to the master's in float32, also over micro-batches, so that no sum is rounded to bfloat16.

    Args:
        master: the float32 model.

    Attributes:
        model: the bfloat16 copy, with the same choices of `use`.

    Source: Micikevicius et al., "Mixed Precision Training", 2018, section 3.1.
    """

    def __init__(self, master: GPT) -> None:
        with torch.inference_mode(False):  # a resumed run may validate first, and inference tensors can't be trained
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
        """Copy the master's weights; call it after each step."""
        torch._foreach_copy_(self._weights, self._masters)


def _hand_over(of_master: Tensor) -> Callable[[Tensor], None]:
    """Return a hook that adds a weight's finished gradient to the master's parameter."""

    def move(weight: Tensor) -> None:
        assert weight.grad is not None
        if of_master.grad is None:
            of_master.grad = weight.grad.float()
        else:
            of_master.grad += weight.grad
        weight.grad = None

    return move

"""What every average of the weights says about itself, and the average of a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gptstar.choices import Choices
from gptstar.fields import check_ranges
from gptstar.model import GPT, GPTConfig
from gptstar.training.sharding import own_part, part_like


@dataclass(frozen=True)
class Averaging:
    """What averages have in common. A subclass that is registered can be chosen by its name.

    The average of the steps up to t is `a_t = a_(t-1) + share(t) · (weights_t - a_(t-1))`, so a subclass is a sequence
    of shares. The first share that is not 0 is 1: an average begins with the weights of its first step. A share is a
    function of the step alone, so a run that stops and goes on has the average of one that does not stop.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "averaging.")

    def resolved(self, total_steps: int) -> Self:  # for those that begin late
        """Return the same for a run of so many steps, with nothing left to derive."""
        return self

    def share(self, step: int) -> float:
        """The share of the new average that is the weights of a step, which counts from 1; for a resolved one."""
        raise NotImplementedError

    def state_bytes(self, model: GPTConfig) -> int:
        """Count the bytes of the average of a whole model: a float32 copy of it."""
        return 4 * model.n_params


AVERAGING: Choices[Averaging] = Choices("averaging", tag="kind", before="none")


class RunningAverage:
    """The average of a model's weights, on the model's device; of a model in parts this rank's parts of it.

    Args:
        averaging: resolved.
        model: on its device, and in parts if it is to be.
        saved: whole tensors or this rank's parts, by name, of the run that goes on; empty before the average begins.

    Attributes:
        tensors: by the names of the weights; empty before the average begins.
    """

    def __init__(self, averaging: Averaging, model: GPT, saved: Mapping[str, Tensor]) -> None:
        self._averaging, self._weights = averaging, {name: each.detach() for name, each in model.named_parameters()}
        self.tensors = {
            name: part_like(weight, saved[name]).to(weight, copy=True)
            for name, weight in (self._weights.items() if saved else ())
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that a step, which counts from 1, ended with."""
        share = self._averaging.share(step)
        if not share:
            return
        if not self.tensors:
            self.tensors = {name: weight.clone() for name, weight in self._weights.items()}
            return
        # On the parts themselves: the sum is elementwise, so no rank has to know of another's.
        torch._foreach_lerp_(*self._parts(), share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Exchange the model's weights and the average, bit by bit, and back again; a model in parts is resharded."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(*self._parts(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        return [own_part(each) for each in self.tensors.values()], [own_part(each) for each in self._weights.values()]

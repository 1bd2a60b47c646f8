"""The interface of all kinds of weight averaging, and the running average of a run."""

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
    """A kind of weight averaging. Registered subclasses can be chosen by their name.

    The average after step t is `a_t = a_(t-1) + share(t) · (weights_t - a_(t-1))`, so a subclass defines a sequence of
    shares. The first share that is not 0 is 1: an average begins with the weights of its first step. A share depends on
    the step only, so an interrupted and resumed run has the same average as an uninterrupted one.
    """

    def __post_init__(self) -> None:
        check_ranges(self, "averaging.")

    def resolved(self, total_steps: int) -> Self:  # some begin late
        """Return the averaging with all derived values filled in, for a run of `total_steps`."""
        return self

    def share(self, step: int) -> float:
        """Return the weight of a step, counted from 1, in the new average; the averaging must be resolved."""
        raise NotImplementedError

    def state_bytes(self, model: GPTConfig) -> int:
        """Count the bytes of a full model's average: a float32 copy of it."""
        return 4 * model.n_params


AVERAGING: Choices[Averaging] = Choices("averaging", tag="kind", before="none")


class RunningAverage:
    """The running average of a model's weights, on the model's device; of a sharded model, this rank's shards.

    Args:
        averaging: the resolved kind of averaging.
        model: the model, on its device and already sharded if it is to be.
        saved: the average of the resumed run by name, full tensors or this rank's shards; empty before it begins.

    Attributes:
        tensors: the averaged weights by name; empty before the average begins.
    """

    def __init__(self, averaging: Averaging, model: GPT, saved: Mapping[str, Tensor]) -> None:
        self._averaging, self._weights = averaging, {name: each.detach() for name, each in model.named_parameters()}
        self.tensors = {
            name: part_like(weight, saved[name]).to(weight, copy=True)
            for name, weight in (self._weights.items() if saved else ())
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step, counted from 1."""
        share = self._averaging.share(step)
        if not share:
            return
        if not self.tensors:
            self.tensors = {name: weight.clone() for name, weight in self._weights.items()}
            return
        # The update is elementwise, so each rank updates its own shards.
        torch._foreach_lerp_(*self._parts(), share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap the model's weights with the average within the context, bitwise; a sharded model is resharded."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(*self._parts(), strict=True):
            previous = weight.clone()
            weight.copy_(average)
            average.copy_(previous)

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        return [own_part(each) for each in self.tensors.values()], [own_part(each) for each in self._weights.values()]

"""Sequence-length warm-up: the context doubles in stages, over the same tokens in the same order."""

from dataclasses import dataclass, replace
from typing import Annotated, Self

from torch import Tensor

from gptstar.errors import ConfigError
from gptstar.fields import Before, Count, check_ranges


@dataclass(frozen=True)
class Curriculum:
    """Sequence-length warm-up: how the training context grows.

    A step reads the same tokens at any context length: a window of `data.context_length` is split into shorter ones.
    So the curriculum does not change the data order, and no token is read twice.

    Attributes:
        first_length: the initial context length in tokens. It doubles, in stages of equally many steps, up to
            `data.context_length`. None means the full length from the first step on.
        steps: the step from which windows have the full length; by default half of the run.

    Source: Li et al., "The stability-efficiency dilemma: investigating sequence length warmup", 2022; Press et al.,
    "Shortformer", 2021, section 4.
    """

    first_length: Annotated[Count | None, Before(None)] = None
    steps: Annotated[Count | None, Before(None)] = None

    def __post_init__(self) -> None:
        check_ranges(self, "curriculum.")
        if self.steps is not None and self.first_length is None:
            raise ConfigError(
                f"curriculum.steps={self.steps} needs curriculum.first_length: give the initial context length, or set "
                "curriculum.steps=null"
            )

    def resolved(self, context_length: int, total_steps: int) -> Self:
        """Return the curriculum with all values filled in for a run.

        Raises:
            ConfigError: doubling `first_length` never gives `context_length`, or `first_length` is not shorter.
        """
        if self.first_length is None:
            return self
        ratio, rest = divmod(context_length, self.first_length)
        if rest or ratio < 2 or ratio & (ratio - 1):
            raise ConfigError(
                f"curriculum.first_length={self.first_length} does not double to data.context_length={context_length}: "
                "choose a half, a quarter, an eighth … of it"
            )
        return replace(self, steps=self.steps or max(1, total_steps // 2))

    def check_end(self, planned_steps: int) -> None:
        """Check that windows reach the full length before the run ends.

        Args:
            planned_steps: the steps of the run, or of its schedule if that is longer because the run will be continued.

        Raises:
            ConfigError: windows never reach the full length.
        """
        if self.steps is not None and self.steps >= planned_steps:
            raise ConfigError(
                f"curriculum.steps={self.steps} leaves none of {planned_steps} steps for the full data.context_length: "
                "give fewer, or curriculum.steps=null for half of them"
            )

    def n_lengths(self, context_length: int) -> int:
        """Count the context lengths of a run."""
        return 1 if self.first_length is None else (context_length // self.first_length).bit_length()

    def length(self, step: int, context_length: int) -> int:
        """Return the context length in tokens after `step` finished steps; the curriculum must be resolved."""
        if self.first_length is None or self.steps is None or step >= self.steps:
            return context_length
        stages = self.n_lengths(context_length) - 1
        return self.first_length << step * stages // self.steps


def folded(windows: Tensor, length: int) -> Tensor:
    """Split windows: `(sequence, context_length + 1)` → `(sequence * context_length / length, length + 1)`."""
    return windows.unfold(1, length + 1, length).flatten(0, 1)

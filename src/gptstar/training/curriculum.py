"""Short windows first: a context that doubles in stages, over the same tokens in the same order."""

from dataclasses import dataclass, replace
from typing import Annotated, Self

from torch import Tensor

from gptstar.errors import ConfigError
from gptstar.fields import Before, Count, check_ranges


@dataclass(frozen=True)
class Curriculum:
    """How the training context grows.

    A step reads the same tokens at any length: a window of `data.context_length` is folded into shorter ones. So the
    order of data knows nothing of it, and no token is seen twice.

    Attributes:
        first_length: tokens of context at first; it doubles, in stages of as many steps, until it is
            `data.context_length`. None: the same length from the first step on.
        steps: the step from which on all windows are whole; half of the run unless given.

    Source: Li et al., "The stability-efficiency dilemma: investigating sequence length warmup", 2022; Press et al.,
    "Shortformer", 2021, section 4.
    """

    first_length: Annotated[Count | None, Before(None)] = None
    steps: Annotated[Count | None, Before(None)] = None

    def __post_init__(self) -> None:
        check_ranges(self, "curriculum.")
        if self.steps is not None and self.first_length is None:
            raise ConfigError(
                f"curriculum.steps={self.steps} without curriculum.first_length: give the length to begin at, or "
                "curriculum.steps=null"
            )

    def resolved(self, context_length: int, total_steps: int) -> Self:
        """The same for a run, with nothing left to derive.

        Raises:
            ConfigError: doubling the first length does not lead to the context, or there is nothing to double.
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
        """See that windows are whole before a run ends.

        Args:
            planned_steps: of the run, or of its schedule where that is longer, as the run is to go on then.

        Raises:
            ConfigError: they never are.
        """
        if self.steps is not None and self.steps >= planned_steps:
            raise ConfigError(
                f"curriculum.steps={self.steps} leaves none of {planned_steps} steps to the whole data.context_length: "
                "give fewer, or curriculum.steps=null for half of them"
            )

    def n_lengths(self, context_length: int) -> int:
        """How many context lengths a run has."""
        return 1 if self.first_length is None else (context_length // self.first_length).bit_length()

    def length(self, step: int, context_length: int) -> int:
        """Tokens of context in the update after `step` finished steps; of a resolved curriculum."""
        if self.first_length is None or self.steps is None or step >= self.steps:
            return context_length
        stages = self.n_lengths(context_length) - 1
        return self.first_length << step * stages // self.steps


def folded(windows: Tensor, length: int) -> Tensor:
    """`(sequence, context_length + 1)` → `(sequence * context_length / length, length + 1)`, of the same targets."""
    return windows.unfold(1, length + 1, length).flatten(0, 1)

"""The recipe of a run: the settings that shape its result."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from gptstar.data.config import DataConfig
from gptstar.errors import ConfigError
from gptstar.fields import Count, Role, Seed, Shown, check_ranges
from gptstar.model import GPTConfig
from gptstar.training.averaging import AVERAGING, Averaging
from gptstar.training.averaging.none import NO_AVERAGE
from gptstar.training.curriculum import Curriculum
from gptstar.training.optimizers import OPTIMIZERS, Optimizer
from gptstar.training.schedules import SCHEDULES, Schedule


@dataclass(frozen=True)
class Recipe:
    """The settings that shape the result of a run, except the precision, which is a key of `hardware`.

    Attributes:
        seed: the seed of initial weights, data order and dropout.
        total_steps: the number of optimizer steps.
        batch_tokens: the number of tokens per optimizer step.
        on_nonfinite: whether to `stop` at a step with an infinite or nan loss or gradient, or to `skip` it.
        optimizer: the optimizer, chosen by `optimizer=NAME`.
        schedule: the learning rate's course over the steps, chosen by `schedule=NAME`.
        averaging: which average of the weights is kept beside the last weights, chosen by `averaging=NAME`.
    """

    seed: Annotated[Seed, Shown.ALWAYS]
    total_steps: Annotated[Count, Role.CHANGEABLE, Shown.ALWAYS]
    batch_tokens: Annotated[Count, Shown.ALWAYS]
    on_nonfinite: Annotated[Literal["stop", "skip"], Role.CHANGEABLE]
    model: GPTConfig
    data: Annotated[DataConfig, Role.CHANGEABLE]
    optimizer: Annotated[Optimizer, OPTIMIZERS]
    schedule: Annotated[Schedule, SCHEDULES]
    curriculum: Curriculum
    averaging: Annotated[Averaging, AVERAGING] = NO_AVERAGE

    def __post_init__(self) -> None:
        check_ranges(self, "")
        if self.total_steps * self.batch_tokens >= 2**62:
            raise ConfigError(f"total_steps={self.total_steps} is too large to count: give fewer steps")
        if self.batch_tokens % self.data.block_tokens:
            raise ConfigError(
                f"batch_tokens={self.batch_tokens} is not a multiple of data.block_tokens={self.data.block_tokens}: "
                "a step reads whole blocks; change one of them"
            )
        self.model.check_length("data.context_length", self.data.context_length)
        self.schedule.resolved(self.total_steps)
        self.averaging.resolved(self.total_steps)
        self.curriculum.resolved(self.data.context_length, self.total_steps)
        self.curriculum.check_end(max(self.total_steps, self.schedule.end or 0))

    @property
    def sequences_per_step(self) -> int:
        """The number of sequences of an optimizer step, over all devices."""
        return self.batch_tokens // self.data.context_length

    def resolved(self, precision: str) -> Self:
        """Return the recipe with all derived values filled in, for a run that computes in `precision`."""
        return replace(
            self,
            optimizer=self.optimizer.resolved(precision),
            schedule=self.schedule.resolved(self.total_steps),
            curriculum=self.curriculum.resolved(self.data.context_length, self.total_steps),
            averaging=self.averaging.resolved(self.total_steps),
        )

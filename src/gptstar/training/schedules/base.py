"""What every schedule of the learning rate has: a warm-up, and a shape after it."""

from dataclasses import dataclass, replace
from typing import Self

from gptstar.choices import Choices
from gptstar.errors import ConfigError
from gptstar.fields import Count, NotNegative, Share, check_ranges


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from zero to the peak, then the shape of a subclass.

    Attributes:
        warmup_steps: steps from zero to the peak.
    """

    warmup_steps: NotNegative

    def __post_init__(self) -> None:
        check_ranges(self, "schedule.")

    @property
    def end(self) -> int | None:
        """The step at which a decay ends; None if there is none, or if it ends with the run."""
        return None

    def resolved(self, total_steps: int) -> Self:  # for those that decay
        """Return the same schedule for a run of so many steps, with nothing left to derive.

        Raises:
            ConfigError: the run is too short for it.
        """
        return self

    def fraction(self, step: int) -> float:
        """Share of the peak that the update after `step` finished steps uses; for a resolved schedule."""
        return step / self.warmup_steps if step < self.warmup_steps else self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        """Share of the peak at a step that is not before `warmup_steps`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Decaying(Schedule):
    """A schedule that goes down to a fraction of the peak, and stays there.

    Attributes:
        final_fraction: what is left of the peak at the end of the decay.
        decay_until: the step at which the decay ends; the run's last step unless given.
    """

    final_fraction: Share = 0.1
    decay_until: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_until is not None and self.decay_until <= self.warmup_steps:
            raise ConfigError(
                f"schedule.decay_until={self.decay_until} is not after schedule.warmup_steps={self.warmup_steps}"
            )

    @property
    def end(self) -> int | None:
        """The step at which the decay ends."""
        return self.decay_until

    def resolved(self, total_steps: int) -> Self:
        """Return the same with `decay_until` filled in.

        Raises:
            ConfigError: the warm-up leaves no step to decay in.
        """
        end = self.decay_until or total_steps
        if self.warmup_steps + 1 > end:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} leaves nothing of total_steps={total_steps} to decay in: "
                "shorten the warm-up"
            )
        return replace(self, decay_until=end)

    def after_warmup(self, step: int) -> float:
        """Between the peak and the final fraction, by how much of the decay is done."""
        assert self.decay_until is not None
        progress = min(1.0, max(0, step - self._begin) / max(1, self.decay_until - self._begin))
        return self.final_fraction + (1.0 - self.final_fraction) * self.left(progress)

    @property
    def _begin(self) -> int:
        """The step at which the decay begins."""
        return self.warmup_steps

    def left(self, progress: float) -> float:
        """What is left between peak and final fraction when a share of the decay's steps is done: from 1 to 0."""
        raise NotImplementedError


SCHEDULES: Choices[Schedule] = Choices(
    "schedule", tag="shape", before="cosine", never_dropped=("decay_until", "decay_steps")
)

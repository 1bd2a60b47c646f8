"""The interface of all learning-rate schedules: a warm-up, then a shape that a subclass defines."""

from dataclasses import dataclass, replace
from typing import Self

from gptstar.choices import Choices
from gptstar.errors import ConfigError
from gptstar.fields import Count, NotNegative, Share, check_ranges


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule: linear warm-up from zero to the peak, then the shape of a subclass.

    Attributes:
        warmup_steps: the number of steps from zero to the peak.
    """

    warmup_steps: NotNegative

    def __post_init__(self) -> None:
        check_ranges(self, "schedule.")

    @property
    def end(self) -> int | None:
        """The step at which the decay ends; None if there is no decay, or if it ends with the run."""
        return None

    def resolved(self, total_steps: int) -> Self:  # some decay
        """Return the schedule with all derived values filled in, for a run of `total_steps`.

        Raises:
            ConfigError: the run is too short for the schedule.
        """
        return self

    def fraction(self, step: int) -> float:
        """Return the learning rate after `step` finished steps, as a share of the peak, for a resolved schedule."""
        return step / self.warmup_steps if step < self.warmup_steps else self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        """Return the learning rate at a step from `warmup_steps` on, as a share of the peak."""
        raise NotImplementedError


@dataclass(frozen=True)
class Decaying(Schedule):
    """A schedule that decays to a fraction of the peak, and stays there.

    Attributes:
        final_fraction: the learning rate at the end of the decay, as a share of the peak.
        decay_until: the step at which the decay ends; by default the run's last step.
    """

    final_fraction: Share = 0.1
    decay_until: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_until is not None and self.decay_until <= self.warmup_steps:
            raise ConfigError(
                f"schedule.decay_until={self.decay_until} is not after schedule.warmup_steps={self.warmup_steps}: "
                "give a later step, or a shorter warm-up"
            )

    @property
    def end(self) -> int | None:
        """The step at which the decay ends; None if it is not filled in yet."""
        return self.decay_until

    def resolved(self, total_steps: int) -> Self:
        """Return the schedule with `decay_until` filled in.

        Raises:
            ConfigError: the warm-up leaves no steps for the decay.
        """
        end = self.decay_until or total_steps
        if self.warmup_steps + 1 > end:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} leaves no steps of total_steps={total_steps} for the "
                "decay: shorten the warm-up"
            )
        return replace(self, decay_until=end)

    def after_warmup(self, step: int) -> float:
        """Interpolate between the peak and the final fraction, by the progress of the decay."""
        assert self.decay_until is not None
        progress = min(1.0, max(0, step - self._begin) / max(1, self.decay_until - self._begin))
        return self.final_fraction + (1.0 - self.final_fraction) * self.left(progress)

    @property
    def _begin(self) -> int:
        """The step at which the decay begins."""
        return self.warmup_steps

    def left(self, progress: float) -> float:
        """Return the shape of the decay: 1, the peak, at `progress` 0, and 0, the final fraction, at `progress` 1."""
        raise NotImplementedError


SCHEDULES: Choices[Schedule] = Choices(
    "schedule", tag="shape", before="cosine", never_dropped=("decay_until", "decay_steps")
)

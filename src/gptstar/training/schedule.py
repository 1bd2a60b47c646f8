"""The learning rate as a function of the step."""

import math
from dataclasses import dataclass

from gptstar.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up from zero, cosine decay, then constant.

    Attributes:
        warmup_steps: steps from zero to the peak.
        final_fraction: what is left of the peak at the end of the decay.
        decay_until: the step at which the decay ends; the run's last step unless given.
    """

    warmup_steps: int
    final_fraction: float = 0.1
    decay_until: int | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps={self.warmup_steps} is negative")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ConfigError(f"schedule.final_fraction={self.final_fraction} is not in [0, 1]")
        if self.decay_until is not None and self.decay_until <= self.warmup_steps:
            raise ConfigError(
                f"schedule.decay_until={self.decay_until} is not after schedule.warmup_steps={self.warmup_steps}"
            )

    def decay_end(self, total_steps: int) -> int:
        """The step at which the decay ends, derived where not given."""
        return self.decay_until or total_steps

    def fraction(self, step: int, total_steps: int) -> float:
        """Share of the peak learning rate that the update after `step` finished steps uses.

        Source: Loshchilov and Hutter, "SGDR", 2017, equation 5, after a linear warm-up.
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        end = self.decay_end(total_steps)
        progress = min(1.0, (step - self.warmup_steps) / max(1, end - self.warmup_steps))
        return self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))

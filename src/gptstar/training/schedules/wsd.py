"""The WSD schedule: warm-up, stable, decay."""

import math
from dataclasses import dataclass, replace
from typing import Self

from gptstar.errors import ConfigError
from gptstar.fields import Count
from gptstar.training.schedules.base import SCHEDULES, Decaying

SHARE = 0.2
"""The share of a run's steps in the decay, unless `decay_steps` is given. Source: Hägele et al., 2024, section 4.1."""


@SCHEDULES.register("wsd")
@dataclass(frozen=True)
class WSD(Decaying):
    """Warm-up, stable, decay: constant at the peak until near the end, then a decay with the shape `1 - sqrt`.

    Attributes:
        decay_steps: the number of steps of the decay; by default a fifth of the run.

    Source: Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024.
    """

    decay_steps: Count | None = None

    def resolved(self, total_steps: int) -> Self:
        """Return the schedule with `decay_until` and `decay_steps` filled in.

        Raises:
            ConfigError: warm-up and decay together are longer than the run.
        """
        end = self.decay_until or total_steps
        decay = self.decay_steps or max(1, round(SHARE * end))
        if self.warmup_steps + decay > end:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} and schedule.decay_steps={decay} exceed the {end} steps "
                "until the decay ends: shorten one of them"
            )
        return replace(self, decay_until=end, decay_steps=decay)

    @property
    def _begin(self) -> int:
        return (self.decay_until or 0) - (self.decay_steps or 0)

    def left(self, progress: float) -> float:
        """Return `1 - sqrt(progress)`, from 1 to 0."""
        return 1.0 - math.sqrt(progress)

"""Warm-up, then down with the square root of the step."""

import math
from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Schedule


@SCHEDULES.register("inverse_sqrt")
@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Half the peak after four times the warm-up's steps; it needs no end.

    Source: Vaswani et al., "Attention is all you need", 2017, section 5.3.
    """

    def after_warmup(self, step: int) -> float:
        """The root of the warm-up's steps over the step."""
        return math.sqrt(max(1, self.warmup_steps) / max(1, step))

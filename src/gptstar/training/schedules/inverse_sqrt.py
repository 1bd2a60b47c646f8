"""Warm-up, then decay with the inverse square root of the step."""

import math
from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Schedule


@SCHEDULES.register("inverse_sqrt")
@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Inverse-square-root decay after the warm-up, without a fixed end; at four times the warm-up it is half the peak.

    Source: Vaswani et al., "Attention is all you need", 2017, section 5.3.
    """

    def after_warmup(self, step: int) -> float:
        """Return `sqrt(warmup_steps / step)`."""
        return math.sqrt(max(1, self.warmup_steps) / max(1, step))

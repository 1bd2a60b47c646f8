"""Warm-up, then cosine decay."""

import math
from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Decaying


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Decaying):
    """Cosine decay after the warm-up.

    Source: Loshchilov and Hutter, "SGDR", 2017.
    """

    def left(self, progress: float) -> float:
        """Return half a period of a cosine, from 1 to 0."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))

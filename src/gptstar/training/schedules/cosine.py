"""Warm-up, then half a cosine down."""

import math
from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Decaying


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Decaying):
    """Half a period of a cosine.

    Source: Loshchilov and Hutter, "SGDR", 2017.
    """

    def left(self, progress: float) -> float:
        """From 1 to 0."""
        return 0.5 * (1.0 + math.cos(math.pi * progress))

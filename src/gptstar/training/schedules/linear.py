"""Warm-up, then straight down."""

from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Decaying


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Decaying):
    """A straight line.

    Source: Bergsma et al., "Straight to zero: why linearly decaying the learning rate to zero works best for LLMs",
    2025.
    """

    def left(self, progress: float) -> float:
        """From 1 to 0."""
        return 1.0 - progress

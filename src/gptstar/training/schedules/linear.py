"""Warm-up, then linear decay."""

from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Decaying


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Decaying):
    """Linear decay after the warm-up.

    Source: Bergsma et al., "Straight to zero: why linearly decaying the learning rate to zero works best for LLMs",
    2025.
    """

    def left(self, progress: float) -> float:
        """Return a straight line from 1 to 0."""
        return 1.0 - progress

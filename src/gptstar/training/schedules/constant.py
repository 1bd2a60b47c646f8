"""Warm-up, then constant."""

from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Schedule


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """A constant learning rate after the warm-up."""

    def after_warmup(self, step: int) -> float:
        """Return 1, the whole peak."""
        return 1.0

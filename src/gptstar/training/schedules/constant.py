"""Warm-up, then constant."""

from dataclasses import dataclass

from gptstar.training.schedules.base import SCHEDULES, Schedule


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """At the peak to the end."""

    def after_warmup(self, step: int) -> float:
        """All of it."""
        return 1.0

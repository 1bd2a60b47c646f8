"""Uniform mean of the last weights."""

from dataclasses import dataclass, replace
from typing import Self

from gptstar.errors import ConfigError
from gptstar.fields import NotNegative, Share
from gptstar.training.averaging.base import AVERAGING, Averaging


@AVERAGING.register("tail")
@dataclass(frozen=True)
class Tail(Averaging):
    """The uniform mean of the weights after each of the last steps; there is none before those begin.

    Attributes:
        fraction: the share of the run's steps that is averaged, unless `begin` is given.
        begin: the step after which the average begins.

    Source: Jain et al., "Parallelizing stochastic gradient descent for least squares regression: mini-batching,
    averaging, and model misspecification", 2018 (tail-averaging).
    """

    fraction: Share = 0.2
    begin: NotNegative | None = None

    def resolved(self, total_steps: int) -> Self:
        """Return the same with `begin` filled in.

        Raises:
            ConfigError: no step is left to average.
        """
        if self.begin is not None:
            return self
        if not (averaged := round(self.fraction * total_steps)):
            raise ConfigError(
                f"averaging.fraction={self.fraction} is no whole step of total_steps={total_steps}: give a larger one, "
                "or averaging=none"
            )
        return replace(self, begin=total_steps - averaged)

    def share(self, step: int) -> float:
        """One over the number of steps averaged so far; 0 before the first."""
        assert self.begin is not None
        return 1.0 / (step - self.begin) if step > self.begin else 0.0

"""Tail averaging: the uniform mean of the weights over the last steps."""

from dataclasses import dataclass, replace
from typing import Self

from gptstar.errors import ConfigError
from gptstar.fields import NotNegative, Share
from gptstar.training.averaging.base import AVERAGING, Averaging


@AVERAGING.register("tail")
@dataclass(frozen=True)
class Tail(Averaging):
    """Tail averaging: the uniform mean of the weights after each of the run's last steps.

    Attributes:
        fraction: the share of the run's steps that is averaged, unless `begin` is given.
        begin: the step after which the average begins.

    Source: Jain et al., "Parallelizing stochastic gradient descent for least squares regression: mini-batching,
    averaging, and model misspecification", 2018 (tail-averaging).
    """

    fraction: Share = 0.2
    begin: NotNegative | None = None

    def resolved(self, total_steps: int) -> Self:
        """Return the averaging with `begin` filled in.

        Raises:
            ConfigError: no step remains to be averaged.
        """
        if self.begin is not None:
            return self
        if not (averaged := round(self.fraction * total_steps)):
            raise ConfigError(
                f"averaging.fraction={self.fraction} is less than one step of total_steps={total_steps}: give a larger "
                "fraction, or averaging=none"
            )
        return replace(self, begin=total_steps - averaged)

    def share(self, step: int) -> float:
        """Return one over the number of steps averaged so far; 0 before the first."""
        assert self.begin is not None
        return 1.0 / (step - self.begin) if step > self.begin else 0.0

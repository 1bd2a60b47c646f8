"""No average."""

from dataclasses import dataclass

from gptstar.model import GPTConfig
from gptstar.training.averaging.base import AVERAGING, Averaging


@AVERAGING.register("none")
@dataclass(frozen=True)
class NoAverage(Averaging):
    """No averaging: only the last weights are kept."""

    def share(self, step: int) -> float:
        """Return 0: nothing is averaged."""
        return 0.0

    def state_bytes(self, model: GPTConfig) -> int:
        """Return 0: nothing is stored."""
        return 0


NO_AVERAGE = NoAverage()

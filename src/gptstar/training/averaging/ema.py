"""Exponential moving average."""

from dataclasses import dataclass

from gptstar.fields import NotNegative, Within
from gptstar.training.averaging.base import AVERAGING, Averaging


@AVERAGING.register("ema")
@dataclass(frozen=True)
class EMA(Averaging):
    """The weights of step i count with `decay ** (t - i)` at step t, divided by the sum of these numbers.

    With `begin=0`, `a_t = (1 - d) / (1 - d ** t) · Σ d ** (t - i) · weights_i` over i = 1 … t. The denominator corrects
    the bias towards zero, where a plain moving average begins: in the first steps the average is about the uniform mean
    of all weights so far, without the initial ones. Steps older than a few times `1 / (1 - decay)` no longer count.

    Attributes:
        decay: what is left of the weight of a step after the next one.
        begin: the step after which the average begins.

    Source: Polyak & Juditsky, 1992, for averaging; Kingma & Ba, "Adam", 2015, section 3, for the correction.
    """

    decay: Within = 0.999
    begin: NotNegative = 0

    def share(self, step: int) -> float:
        """From 1 at the first step to `1 - decay`."""
        return (1.0 - self.decay) / (1.0 - self.decay ** (step - self.begin)) if step > self.begin else 0.0

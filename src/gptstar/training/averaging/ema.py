"""The exponential moving average of the weights."""

from dataclasses import dataclass

from gptstar.fields import NotNegative, Within
from gptstar.training.averaging.base import AVERAGING, Averaging


@AVERAGING.register("ema")
@dataclass(frozen=True)
class EMA(Averaging):
    """The exponential moving average: at step t, the weights of step i count in proportion to `decay ** (t - i)`.

    With `begin=0`, `a_t = (1 - d) / (1 - d ** t) · Σ d ** (t - i) · weights_i` over i = 1 … t. The denominator corrects
    the bias of a moving average that starts at zero: in the first steps the average is about the uniform mean of all
    weights so far, without the initial ones. Steps older than a few times `1 / (1 - decay)` hardly count.

    Attributes:
        decay: the factor by which the weight of a past step shrinks at each step.
        begin: the step after which the average begins.

    Source: Polyak & Juditsky, 1992, for averaging; Kingma & Ba, "Adam", 2015, section 3, for the correction.
    """

    decay: Within = 0.999
    begin: NotNegative = 0

    def share(self, step: int) -> float:
        """Return the share of a step, which falls from 1 at the first step to `1 - decay`."""
        return (1.0 - self.decay) / (1.0 - self.decay ** (step - self.begin)) if step > self.begin else 0.0

"""Prediction of how far a head can see: up to where its weights underflow, or up to the end of its window.

For equal content the weight at distance d is `exp(-m * d)` of the nearest token's, with a slope m. So from a distance
on that is a constant over m it is zero, or too small to change a sum. Beyond an attention window it is zero for every
kind of positions, but for the sinks, the first tokens of a text.
"""

import math
from dataclasses import dataclass

import torch

from gptstar.model.mask import FULL, Mask

NORMAL = 126 * math.log(2)
"""87.3: beyond it `exp(-x)` is below float32's normal numbers, and zero where a kernel flushes subnormals."""

SUBNORMAL = 150 * math.log(2)
"""104.0: beyond it `exp(-x)` rounds to zero in float32 where subnormals are kept."""

BFLOAT16 = 134 * math.log(2)
"""92.9: beyond it `exp(-x)` rounds to zero in bfloat16."""

ROUNDING = 24 * math.log(2)
"""16.6: beyond it `exp(-x)` is below half a unit in the last place of 1, so it changes no sum that 1 is part of."""


@dataclass(frozen=True)
class Reach:
    """Distances in tokens beyond which a head's weights vanish for equal content; infinite without a slope.

    Attributes:
        slope: m, by which scores fall with each token of distance; None for positions without slopes.
        changes_nothing: the distance beyond which weights are too small to change a sum, `ROUNDING / m`.
        zero: the distance beyond which weights are zero on the measuring device: `flushed` or `subnormal`.
        flushed, subnormal, bfloat16: the distances beyond which weights are zero in float32 without subnormals, in
            float32 with subnormals, and in bfloat16.
        farthest: the farthest distance with a weight, sinks excluded: `zero`, or the end of the window.
        sinks: the number of first tokens of a text that are attended to beyond the window.
    """

    slope: float | None
    changes_nothing: float
    zero: float
    flushed: float
    subnormal: float
    bfloat16: float
    farthest: float
    sinks: int

    def is_blind(self, trained_at: int, length: int, n_queries: int) -> bool:
        """Whether the last `n_queries` of `length` tokens give no weight at distances of `trained_at` or more."""
        nearest_sink = max(trained_at, length - n_queries - (self.sinks - 1))
        return self.farthest < trained_at and not (self.sinks and nearest_sink <= self.zero)

    def misses_first(self, length: int, n_queries: int) -> bool:
        """Whether the last `n_queries` of `length` tokens give no weight to the first token."""
        return (self.zero if self.sinks else self.farthest) < length - n_queries  # the nearest query counts


def reach_of(slope: float | None, *, keeps_subnormals: bool, mask: Mask = FULL) -> Reach:
    """Compute how far a head with this slope and this window sees."""
    rounding, flushed, subnormal, bfloat16 = (
        math.inf if slope is None else constant / slope for constant in (ROUNDING, NORMAL, SUBNORMAL, BFLOAT16)
    )
    zero = subnormal if keeps_subnormals else flushed
    farthest = zero if mask.window is None else min(zero, mask.window - 1)
    return Reach(slope, rounding, zero, flushed, subnormal, bfloat16, farthest, mask.sinks)


def keeps_subnormals(device: torch.device) -> bool:
    """Whether a softmax on a device returns subnormal float32 weights."""
    scores = torch.full((1, 256), -(NORMAL + SUBNORMAL) / 2, device=device)
    scores[0, 0] = 0.0
    return bool((torch.softmax(scores, dim=-1) > 0).all())

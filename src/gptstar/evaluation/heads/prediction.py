"""How far a head with a slope can see, by arithmetic: where float32 has no number left for its weights.

For equal content the weight at distance d is `exp(-m * d)` of the nearest token's, with a slope m. So from a distance
on that is a constant over m it is zero, or too small to change a sum.
"""

import math
from dataclasses import dataclass

import torch

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
    """Distances in tokens beyond which a head's weights vanish for equal content.

    Attributes:
        slope: m, by which scores fall with each token of distance.
        changes_nothing: where weights are too small to change a sum, `ROUNDING / m`.
        zero: where they are zero on the device that measured: `flushed` or `subnormal`.
        flushed, subnormal, bfloat16: where they are zero in float32 without and with subnormals, and in bfloat16.
    """

    slope: float
    changes_nothing: float
    zero: float
    flushed: float
    subnormal: float
    bfloat16: float


def reach_of(slope: float, *, keeps_subnormals: bool) -> Reach:
    """Compute how far a head with this slope sees."""
    flushed, subnormal = NORMAL / slope, SUBNORMAL / slope
    zero = subnormal if keeps_subnormals else flushed
    return Reach(slope, ROUNDING / slope, zero, flushed, subnormal, BFLOAT16 / slope)


def keeps_subnormals(device: torch.device) -> bool:
    """Tell whether a softmax on a device returns subnormal float32 weights."""
    scores = torch.full((1, 256), -(NORMAL + SUBNORMAL) / 2, device=device)
    scores[0, 0] = 0.0
    return bool((torch.softmax(scores, dim=-1) > 0).all())

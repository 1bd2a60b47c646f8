"""p-RoPE: rotary positions in which the slowest pairs of features don't rotate."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gptstar.fields import Share
from gptstar.model.positions.rotary import Rotary, position_angles, rotary_frequencies


@dataclass(frozen=True)
class PRope(Rotary):
    """p-RoPE: only the `floor(p * d_head / 2)` fastest pairs rotate, at the same frequencies as in `Rotary`.

    GPT-NeoX's partial rotary positions differ: they rotate fewer features, at frequencies spaced over those alone.

    Attributes:
        p: the share of pairs that rotate.

    Source: Barbero et al., "Round and Round We Go! What makes Rotary Positional Encodings useful?", 2024, section 6.
    We have not read the original.
    """

    p: Share = 0.75

    scalings: ClassVar[tuple[str, ...]] = ()

    def _angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        frequencies = rotary_frequencies(d_head, at.device, torch.float64)
        n_turning = math.floor(self.p * d_head / 2 + 1e-9)  # 0.29 * 100 is below 29 in floating point
        turns = torch.arange(len(frequencies), device=at.device) < n_turning
        angles = position_angles(at, torch.where(turns, frequencies, 0.0))
        return angles.cos(), angles.sin()

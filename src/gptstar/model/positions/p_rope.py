"""p-RoPE: rotary positions whose slowest pairs of features stand still."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gptstar.fields import Share
from gptstar.model.positions.rotary import Rotary, position_angles, rotary_frequencies


@dataclass(frozen=True)
class PRope(Rotary):
    """The `floor(p * d_head / 2)` fastest pairs turn, at the frequencies that they have in full rotary positions.

    GPT-NeoX's partial rotary positions differ: they turn fewer features at frequencies that are spaced anew.

    FlexAttention needs no bias for it.

    Attributes:
        p: the share of pairs that turn.

    Source: Barbero et al., "Round and Round We Go! What makes Rotary Positional Encodings useful?", 2024, section 6;
    not read in the original.
    """

    p: Share = 0.75

    scalings: ClassVar[tuple[str, ...]] = ()

    def _angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        frequencies = rotary_frequencies(d_head, at.device, torch.float64)
        n_turning = math.floor(self.p * d_head / 2 + 1e-9)  # 0.29 * 100 is below 29 in floating point
        turns = torch.arange(len(frequencies), device=at.device) < n_turning
        angles = position_angles(at, torch.where(turns, frequencies, 0.0))
        return angles.cos(), angles.sin()

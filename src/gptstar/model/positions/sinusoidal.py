"""Sinusoidal positions: sines and cosines of many wavelengths, added to the token's embedding."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gptstar.model.positions.base import Positions, Sizes
from gptstar.model.positions.rotary import position_angles, rotary_frequencies


@dataclass(frozen=True)
class Sinusoidal(Positions):
    """Sinusoidal positions: feature 2k gets `sin(position / 10000^(2k / d_model))`, feature 2k + 1 the cosine.

    The embedded token is multiplied by `sqrt(d_model)`, as in section 3.4 of the paper. Without that, positions with an
    rms of 0.71 would drown embeddings with a std of 0.02. The output head is not multiplied.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """

    restarts: ClassVar[bool] = True

    def check(self, sizes: Sizes) -> None:
        """Refuse an odd width."""
        if sizes.d_model % 2:
            raise ValueError(
                f"model.d_model={sizes.d_model} is odd; sinusoidal positions are pairs of a sine and a cosine: "
                "make it even"
            )

    def embed(self, x: Tensor, at: Tensor | None, parameters: nn.Module | None) -> Tensor:
        """Scale the embedded tokens, and add the vector of each position."""
        if at is None:
            at = torch.arange(x.shape[1], device=x.device)[None]
        angles = position_angles(at, rotary_frequencies(x.shape[2], at.device, torch.float64))
        vectors = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (batch or 1, position, d_model)
        return (x.float() * math.sqrt(x.shape[2]) + vectors).to(x.dtype)

"""Rotary positions: queries and keys turn by their positions, so that their products know distances."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gptstar.model.positions.base import Positions, Scaling, Sizes

RotaryScaling = Scaling
"""The methods are `ntk` and `yarn`."""


@dataclass(frozen=True)
class Rotary(Positions):
    """Each pair of features turns at its own rate; no parameters and no end.

    Source: Su et al., "RoFormer", 2021.
    """

    scalings: ClassVar[tuple[str, ...]] = ("ntk", "yarn")

    def check(self, sizes: Sizes) -> None:
        """Refuse an odd head width."""
        if sizes.head_width % 2:
            raise ValueError(f"model.d_head={sizes.head_width} is odd; rotary positions turn pairs: make it even")

    def angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        """As `rotary_angles`."""
        return rotary_angles(at, d_head)

    def rotate(self, query: Tensor, key: Tensor, query_at: Tensor, key_at: Tensor) -> tuple[Tensor, Tensor]:
        """Turn both, as `rotate`."""
        angles = self.angles(key_at[:, None], key.shape[3])
        key = rotate(key, *angles)
        if query_at is not key_at:
            angles = self.angles(query_at[:, None], query.shape[3])
        return rotate(query, *angles), key

    def scaled(self, scaling: Scaling) -> "ScaledRotary":
        """Rotary positions that turn more slowly."""
        if scaling.method not in self.scalings:
            super().scaled(scaling)
        return ScaledRotary(scaling)


@dataclass(frozen=True)
class ScaledRotary(Rotary):
    """Rotary positions that are stretched to read further than in training."""

    scaling: Scaling

    def angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        """As `rotary_angles`."""
        return rotary_angles(at, d_head, self.scaling)


ROTARY_BASE = 10_000.0
"""Base of the wavelengths, as RoFormer's."""


def rotary_frequencies(d_head: int, base: float = ROTARY_BASE, device: torch.device | None = None) -> Tensor:
    """Angles that each pair of features turns by from one position to the next: `(d_head / 2,)`, float32.

    Source: Su et al., "RoFormer", 2021, equation 15.
    """
    return base ** (-torch.arange(0, d_head, 2, device=device) / d_head)


def ntk_frequencies(frequencies: Tensor, factor: float) -> Tensor:
    """Frequencies for a context `factor` times that of training: the slowest `factor` times slower, the fastest as is.

    The same as a base of `base * factor^(d / (d - 2))`.

    Args:
        frequencies: `(d_head / 2,)`, of training.

    Source: bloc97, "NTK-Aware Scaled RoPE", r/LocalLLaMA, 2023; Peng et al., "YaRN", 2023, equation 16.
    """
    pairs = len(frequencies)
    share = torch.arange(pairs, device=frequencies.device) / max(1, pairs - 1)  # 0 at the fastest, 1 at the slowest
    return frequencies * factor**-share


def yarn_frequencies(
    frequencies: Tensor, factor: float, trained_at: int, *, base: float = ROTARY_BASE, slow: float = 1, fast: float = 32
) -> Tensor:
    """Frequencies for a context `factor` times that of training, by how often each pair turned within training's.

    Pairs that turned more than `fast` times stay, those that turned less than `slow` times become `factor` times
    slower, and between them a ramp leads from one to the other. It runs over the pairs' numbers, as in the authors'
    code; in the paper it runs over turns.

    Args:
        frequencies: `(d_head / 2,)`, of training, with `base`.
        trained_at: the context length in training.

    Source: Peng et al., "YaRN", 2023, section 3.2, and the authors' code.
    """
    d_head = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return d_head * math.log(trained_at / (times * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(fast)), 0)
    last: float = min(math.ceil(pair_that_turns(slow)), d_head - 1)
    if last == first:
        last += 0.001  # a ramp is no step
    ramp = ((torch.arange(len(frequencies), device=frequencies.device) - first) / (last - first)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / factor * ramp


def yarn_attention_factor(factor: float) -> float:
    """What YaRN multiplies turned queries and keys by: the square root of one over its temperature.

    Source: Peng et al., "YaRN", 2023, equation 22.
    """
    return 0.1 * math.log(factor) + 1.0


def rotary_angles(positions: Tensor, d_head: int, scaling: Scaling | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate`.

    Args:
        positions: `(…, position)`, int64.
        scaling: where more is read than in training.

    Returns:
        Two tensors `(…, position, d_head / 2)`, float32.
    """
    frequencies, size = rotary_frequencies(d_head, device=positions.device), 1.0
    if scaling is not None and scaling.method == "ntk":
        frequencies = ntk_frequencies(frequencies, scaling.factor)
    elif scaling is not None:
        frequencies = yarn_frequencies(frequencies, scaling.factor, scaling.trained_at)
        size = yarn_attention_factor(scaling.factor)
    angles = positions[..., None] * frequencies
    return (angles.cos(), angles.sin()) if size == 1.0 else (angles.cos() * size, angles.sin() * size)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair of features `(i, i + d_head / 2)` by its position's angle (GPT-NeoX's pairing).

    Args:
        x: `(batch, head, position, d_head)`.
        cosines: `(position, d_head / 2)`, from `rotary_angles`, or with axes of batch and head before; `sines` too.

    Returns:
        The shape and type of `x`; computed in float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.type_as(x)

"""Rotary positions: queries and keys turn by their positions, so that their products depend on distances."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gptstar.model.positions.base import Positions, Scaling, Sizes

BASE = 10_000.0
"""The base of the wavelengths, as RoFormer's."""

SLOW, FAST = 1, 32
"""YaRN slows down the pairs of features that turn less often than `FAST` times within the training context, and those
that turn less often than `SLOW` times by the whole factor."""


@dataclass(frozen=True)
class Rotary(Positions):
    """Each pair of features turns at its own rate; no parameters and no end.

    Source: Su et al., "RoFormer", 2021.
    """

    scalings: ClassVar[tuple[str, ...]] = ("ntk", "yarn")
    scaling_key: ClassVar[str] = "rotary_scaling"

    def check(self, sizes: Sizes) -> None:
        """Refuse an odd head width."""
        if sizes.head_width % 2:
            raise ValueError(f"model.d_head={sizes.head_width} is odd; rotary positions turn pairs: make it even")

    def rotate(self, query: Tensor, key: Tensor, query_at: Tensor, key_at: Tensor) -> tuple[Tensor, Tensor]:
        """Turn both by their positions' angles."""
        angles = self._angles(key_at[:, None], key.shape[3])
        key = rotate(key, *angles)
        if query_at is not key_at:
            angles = self._angles(query_at[:, None], query.shape[3])
        return rotate(query, *angles), key

    def _angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        return rotary_angles(at, d_head)

    def scaled(self, scaling: Scaling) -> "ScaledRotary":
        """Return rotary positions that turn more slowly."""
        if scaling.method not in self.scalings:
            super().scaled(scaling)
        return ScaledRotary(scaling)


@dataclass(frozen=True)
class ScaledRotary(Rotary):
    """Rotary positions that are stretched to read further than in training."""

    scaling: Scaling

    def _angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        return rotary_angles(at, d_head, self.scaling)


def rotary_frequencies(d_head: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The angle between neighbouring positions of each pair of features, `(d_head / 2,)` (RoFormer, equation 15)."""
    return BASE ** (-torch.arange(0, d_head, 2, device=device, dtype=dtype) / d_head)


def ntk_frequencies(frequencies: Tensor, factor: float) -> Tensor:
    """Frequencies for a context `factor` times that of training: the slowest `factor` times slower, the fastest as is.

    The same as a base of `base * factor^(d / (d - 2))`. `frequencies` are those of training, `(d_head / 2,)`.

    Source: bloc97, "NTK-Aware Scaled RoPE", r/LocalLLaMA, 2023; Peng et al., "YaRN", 2023, equation 16.
    """
    pairs = len(frequencies)
    share = torch.arange(pairs, device=frequencies.device) / max(1, pairs - 1)  # 0 at the fastest, 1 at the slowest
    return frequencies * factor**-share


def yarn_frequencies(frequencies: Tensor, factor: float, trained_at: int) -> Tensor:
    """Frequencies for a context `factor` times that of training, by how often each pair turned within training's.

    Pairs that turned more than `FAST` times stay, those that turned less than `SLOW` times become `factor` times
    slower, and between them a ramp leads from one to the other. It runs over the pairs' numbers, as in the authors'
    code; in the paper it runs over turns.

    Args:
        frequencies: `(d_head / 2,)`, of training.
        trained_at: the context length in training.

    Source: Peng et al., "YaRN", 2023, section 3.2, and the authors' code.
    """
    d_head = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return d_head * math.log(trained_at / (times * 2 * math.pi)) / (2 * math.log(BASE))

    first = max(math.floor(pair_that_turns(FAST)), 0)
    last: float = min(math.ceil(pair_that_turns(SLOW)), d_head - 1)
    if last == first:
        last += 0.001  # a ramp is not a step
    ramp = ((torch.arange(len(frequencies), device=frequencies.device) - first) / (last - first)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / factor * ramp


def yarn_attention_factor(factor: float) -> float:
    """The factor of turned queries and keys: the root of one over YaRN's temperature (Peng et al., equation 22)."""
    return 0.1 * math.log(factor) + 1.0


def rotary_angles(positions: Tensor, d_head: int, scaling: Scaling | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate`: positions `(…, position)`, int64 → `(…, position, d_head / 2)`, float32, each."""
    frequencies, size = rotary_frequencies(d_head, positions.device, torch.float64), 1.0
    if scaling is not None and scaling.method == "ntk":
        frequencies = ntk_frequencies(frequencies, scaling.factor)
    elif scaling is not None:
        frequencies = yarn_frequencies(frequencies, scaling.factor, scaling.trained_at)
        size = yarn_attention_factor(scaling.factor)
    angles = position_angles(positions, frequencies)
    return (angles.cos(), angles.sin()) if size == 1.0 else (angles.cos() * size, angles.sin() * size)


def position_angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """`position * frequency` without whole turns: `(…, position)`, `(pair,)` → `(…, position, pair)`, float32.

    Frequencies are float64: what float32 rounds off them is 1e-4 of an angle some thousand positions on.
    """
    return (positions[..., None] * frequencies).remainder(2 * math.pi).float()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair of features `(i, i + d_head / 2)` by its position's angle (GPT-NeoX's pairing), in float32.

    Args:
        x: `(batch, head, position, d_head)`; the result has its shape and type.
        cosines: `(position, d_head / 2)`, from `rotary_angles`, or with axes of batch and head before; `sines` too.
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.type_as(x)

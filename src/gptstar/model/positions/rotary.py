"""Rotary positions: queries and keys rotate by their positions, so that their products depend on distances."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gptstar.model.positions.base import Positions, Scaling, Sizes

BASE = 10_000.0
"""The base of the wavelengths, as in RoFormer."""

SLOW, FAST = 1, 32
"""Rotations within the training context. YaRN slows pairs of features that rotate less often than `FAST` times; it
slows those that rotate less often than `SLOW` times by the whole factor."""


@dataclass(frozen=True)
class Rotary(Positions):
    """Rotary positions: each pair of features rotates at its own frequency.

    Source: Su et al., "RoFormer", 2021.
    """

    scalings: ClassVar[tuple[str, ...]] = ("ntk", "yarn")
    scaling_key: ClassVar[str] = "rotary_scaling"

    def check(self, sizes: Sizes) -> None:
        """Refuse an odd head width."""
        if sizes.head_width % 2:
            raise ValueError(f"model.d_head={sizes.head_width} is odd; rotary positions turn pairs: make it even")

    def rotate(self, query: Tensor, key: Tensor, query_at: Tensor, key_at: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate both by their positions' angles."""
        angles = self._angles(key_at[:, None], key.shape[3])
        key = rotate(key, *angles)
        if query_at is not key_at:
            angles = self._angles(query_at[:, None], query.shape[3])
        return rotate(query, *angles), key

    def _angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        return rotary_angles(at, d_head)

    def scaled(self, scaling: Scaling) -> "ScaledRotary":
        """Return rotary positions that rotate more slowly, to read further than in training."""
        if scaling.method not in self.scalings:
            super().scaled(scaling)
        return ScaledRotary(scaling)


@dataclass(frozen=True)
class ScaledRotary(Rotary):
    """Rotary positions scaled by `ntk` or `yarn`, to read further than in training."""

    scaling: Scaling

    def _angles(self, at: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
        return rotary_angles(at, d_head, self.scaling)


def rotary_frequencies(d_head: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return each feature pair's angle between neighbouring positions, `(d_head / 2,)` (RoFormer, equation 15)."""
    return BASE ** (-torch.arange(0, d_head, 2, device=device, dtype=dtype) / d_head)


def ntk_frequencies(frequencies: Tensor, factor: float) -> Tensor:
    """Scale frequencies `(d_head / 2,)` for a context `factor` times as long as in training, by NTK-aware scaling.

    The slowest pair becomes `factor` times slower, the fastest stays. This equals a base of `base * factor^(d / (d -
    2))`.

    Source: bloc97, "NTK-Aware Scaled RoPE", r/LocalLLaMA, 2023; Peng et al., "YaRN", 2023, equation 16.
    """
    pairs = len(frequencies)
    share = torch.arange(pairs, device=frequencies.device) / max(1, pairs - 1)  # 0 at the fastest, 1 at the slowest
    return frequencies * factor**-share


def yarn_frequencies(frequencies: Tensor, factor: float, trained_at: int) -> Tensor:
    """Scale frequencies for a context `factor` times as long as in training, by YaRN.

    Pairs that rotated more than `FAST` times within the training context stay. Those that rotated less than `SLOW`
    times become `factor` times slower. Between them the factor is interpolated over the pairs' indices, as in the
    authors' code; the paper interpolates over the number of rotations.

    Args:
        frequencies: `(d_head / 2,)`, the frequencies in training.
        factor: the context length divided by that of training.
        trained_at: the context length in training.

    Source: Peng et al., "YaRN", 2023, section 3.2, and the authors' code.
    """
    d_head = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return d_head * math.log(trained_at / (times * 2 * math.pi)) / (2 * math.log(BASE))

    first = max(math.floor(pair_that_turns(FAST)), 0)
    last: float = min(math.ceil(pair_that_turns(SLOW)), d_head - 1)
    if last == first:
        last += 0.001  # to avoid dividing by 0
    ramp = ((torch.arange(len(frequencies), device=frequencies.device) - first) / (last - first)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / factor * ramp


def yarn_attention_factor(factor: float) -> float:
    """Return YaRN's factor of rotated queries and keys, `sqrt(1 / temperature)` (Peng et al., equation 22)."""
    return 0.1 * math.log(factor) + 1.0


def rotary_angles(positions: Tensor, d_head: int, scaling: Scaling | None = None) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for `rotate`, each `(…, position, d_head / 2)`, float32, of positions, int64."""
    frequencies, size = rotary_frequencies(d_head, positions.device, torch.float64), 1.0
    if scaling is not None and scaling.method == "ntk":
        frequencies = ntk_frequencies(frequencies, scaling.factor)
    elif scaling is not None:
        frequencies = yarn_frequencies(frequencies, scaling.factor, scaling.trained_at)
        size = yarn_attention_factor(scaling.factor)
    angles = position_angles(positions, frequencies)
    return (angles.cos(), angles.sin()) if size == 1.0 else (angles.cos() * size, angles.sin() * size)


def position_angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Return `position * frequency` modulo 2π: `(…, position)` and `(pair,)` → `(…, position, pair)`, float32.

    Frequencies are float64, because float32 would be wrong by 1e-4 at some thousand positions.
    """
    return (positions[..., None] * frequencies).remainder(2 * math.pi).float()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate each pair of features `(i, i + d_head / 2)` by its position's angle (GPT-NeoX's pairing), in float32.

    Args:
        x: `(batch, head, position, d_head)`; the result has its shape and type.
        cosines, sines: the results of `rotary_angles`: `(position, d_head / 2)`, optionally with leading axes for batch
            and head.
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.type_as(x)

"""ALiBi: scores fall with distance, in each head at its own rate. It has no parameters and no maximal length."""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gptstar.model.positions.base import Positions, Scaling


@dataclass(frozen=True)
class Alibi(Positions):
    """ALiBi: attention adds `-slope * distance` to each score.

    Source: Press, Smith and Lewis, "Train Short, Test Long", 2022.
    """

    scalings: ClassVar[tuple[str, ...]] = ("interpolated", "ntk")
    scaling_key: ClassVar[str] = "alibi_scaling"

    def slopes(self, n_heads: int, device: torch.device) -> Tensor:
        """Return the slopes of `alibi_slopes`, `(head,)`, float32."""
        return head_slopes(n_heads, device)

    def scaled(self, scaling: Scaling) -> "ScaledAlibi":
        """Return ALiBi with smaller slopes, to read further than in training."""
        if scaling.method not in self.scalings:
            super().scaled(scaling)
        return ScaledAlibi(scaling)


@dataclass(frozen=True)
class ScaledAlibi(Alibi):
    """ALiBi with slopes multiplied by `slope_factors`, to read further than in training."""

    scaling: Scaling

    def slopes(self, n_heads: int, device: torch.device) -> Tensor:
        """Return the slopes of `alibi_slopes` times their factors, `(head,)`, float32."""
        return head_slopes(n_heads, device, self.scaling)


def slope_factors(ranks: Tensor, scaling: Scaling) -> Tensor:
    """Return the factors by which slopes are multiplied to read `a = scaling.factor` times further than in training.

    `interpolated` multiplies every slope by 1 / a. `ntk` multiplies by `a^(-rank / (heads - 1))`: the steepest slope
    stays, and the flattest is divided by a. A single head counts as the steepest, so `ntk` does not change it.

    Args:
        ranks: `(head,)`, the rank of each head by its slope, 0 for the steepest. The source uses the head's index
            instead, which is the same if the number of heads is a power of two.

    Returns:
        `(head,)`, float64.

    Source: Al-Khateeb et al., "Position Interpolation Improves ALiBi Extrapolation", 2023 (`interpolated`); the public
    repository keezen/ntk_alibi (`ntk`).
    """
    share = ranks.double() / max(1, len(ranks) - 1) if scaling.method == "ntk" else torch.ones_like(ranks).double()
    return scaling.factor**-share


def head_slopes(n_heads: int, device: torch.device, scaling: Scaling | None = None) -> Tensor:
    """Return the slopes of `alibi_slopes` on a device, optionally scaled, `(head,)`, float32.

    On a CPU they are cached. Elsewhere they are computed on the device, so that a compiled graph holds neither a
    constant nor a copy from the host.
    """
    keeps = device.type == "cpu" and not torch.compiler.is_compiling()
    return _cpu_slopes(n_heads, scaling) if keeps else _slopes(n_heads, device, scaling)


def alibi_slopes(n_heads: int) -> tuple[float, ...]:
    """Return the slope of each head: how fast its scores fall with distance.

    If the number of heads n is a power of two, they are the geometric sequence from 2^(-8/n) to 2^-8. Otherwise they
    are the slopes for the next lower power of two, then every other slope for the next higher one, as in the paper's
    code.

    Source: Press, Smith and Lewis, "Train Short, Test Long", 2022, section 3 and appendix A.
    """
    return tuple(_slopes(n_heads, torch.device("cpu")).tolist())


def _slopes(n_heads: int, device: torch.device, scaling: Scaling | None = None) -> Tensor:
    lower = 2 ** math.floor(math.log2(n_heads))
    head = torch.arange(n_heads, device=device, dtype=torch.float64)
    exponents = torch.where(head < lower, 8 * (head + 1) / lower, 4 * (2 * (head - lower) + 1) / lower)
    slopes = torch.exp2(-exponents)
    if scaling is not None:
        slopes = slopes * slope_factors((exponents[:, None] > exponents).sum(1), scaling)
    return slopes.float()


@functools.lru_cache(maxsize=64)
def _cpu_slopes(n_heads: int, scaling: Scaling | None) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode can't be used in training
        return _slopes(n_heads, torch.device("cpu"), scaling)

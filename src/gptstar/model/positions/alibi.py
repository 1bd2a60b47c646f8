"""ALiBi: scores fall with distance, in each head at its own rate; no parameters and no end."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gptstar.model.positions.base import Positions


@dataclass(frozen=True)
class Alibi(Positions):
    """A score gets `-slope * distance`.

    Source: Press, Smith and Lewis, "Train Short, Test Long", 2022.
    """

    def slopes(self, n_heads: int, device: torch.device) -> Tensor:
        """The slopes of `alibi_slopes`, `(head,)`, float32."""
        return head_slopes(n_heads, device)


def head_slopes(n_heads: int, device: torch.device) -> Tensor:
    """The slopes of `alibi_slopes` on a device, `(head,)`, float32.

    A CPU keeps them. Elsewhere they are computed on the device: a graph holds neither a constant nor a copy from the
    host.
    """
    keeps = device.type == "cpu" and not torch.compiler.is_compiling()
    return _cpu_slopes(n_heads) if keeps else _slopes(n_heads, device)


def alibi_slopes(n_heads: int) -> tuple[float, ...]:
    """The slope of each head: how fast it forgets with distance.

    For a power of two, the geometric sequence from 2^(-8/n) to 2^-8. Otherwise the slopes of the next lower power
    of two, followed by every other slope of the next higher one, as in the paper's own code.

    Source: Press, Smith and Lewis, "Train Short, Test Long", 2022, section 3 and appendix A.
    """
    return tuple(_slopes(n_heads, torch.device("cpu")).tolist())


def _slopes(n_heads: int, device: torch.device) -> Tensor:
    lower = 2 ** math.floor(math.log2(n_heads))
    head = torch.arange(n_heads, device=device, dtype=torch.float64)
    exponents = torch.where(head < lower, 8 * (head + 1) / lower, 4 * (2 * (head - lower) + 1) / lower)
    return torch.exp2(-exponents).float()


@functools.lru_cache(maxsize=64)
def _cpu_slopes(n_heads: int) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode can't be used in training
        return _slopes(n_heads, torch.device("cpu"))

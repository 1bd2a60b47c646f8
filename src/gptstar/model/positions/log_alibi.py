"""ALiBi on logarithms: scores fall with the logarithm of distance; no parameters and no end."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptstar.model.positions.alibi import head_slopes
from gptstar.model.positions.base import Positions


@dataclass(frozen=True)
class LogAlibi(Positions):
    """A score gets `-slope * ln(1 + distance)`, with ALiBi's slopes.

    Source: Schröder, arXiv 2608.03994, 2026, one of the remedies that it compares; not read in the original.
    """

    def by_distance(self, distance: Tensor, n_heads: int, parameters: nn.Module | None) -> Tensor:
        """`-slope * ln(1 + distance)`."""
        slopes = head_slopes(n_heads, distance.device)
        return -slopes.view(-1, *(1 for _ in distance.shape)) * torch.log1p(distance.float())

"""Logarithmic ALiBi: scores fall with the logarithm of distance. It has no parameters and no maximal length."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptstar.model.positions.alibi import head_slopes
from gptstar.model.positions.base import Positions


@dataclass(frozen=True)
class LogAlibi(Positions):
    """Logarithmic ALiBi: attention adds `-slope * ln(1 + distance)` to each score, with ALiBi's slopes.

    Source: Schröder, arXiv 2608.03994, 2026, which compares it with others. We have not read the original.
    """

    def by_distance(self, distance: Tensor, n_heads: int, parameters: nn.Module | None) -> Tensor:
        """Return `-slope * ln(1 + distance)`."""
        slopes = head_slopes(n_heads, distance.device)
        return -slopes.view(-1, *(1 for _ in distance.shape)) * torch.log1p(distance.float())

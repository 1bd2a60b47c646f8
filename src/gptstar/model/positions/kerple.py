"""KERPLE: scores fall with the logarithm of distance, and each head learns how fast."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gptstar.model.positions.base import Positions, Sizes


class KerpleParameters(nn.Module):
    """The parameters `p` and `a` of each head, `(head,)`, before `Kerple.by_distance` bounds them."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.empty(n_heads))
        self.a = nn.Parameter(torch.empty(n_heads))


@dataclass(frozen=True)
class Kerple(Positions):
    """KERPLE, logarithmic variant: attention adds `-p * ln(1 + a * distance)` to each score.

    Each head learns p and a; all layers share them. p starts uniform in (0, 2), a in (0, 1). Both are bounded below by
    0.01. A stored value may fall below the bound; it still receives the gradient at the bound, so that it can rise
    again. There is no weight decay.

    FlexAttention reads it as a table, without gradients.

    Source: Chi et al., "KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation", 2022, equation 7,
    and the authors' code.
    """

    LEAST: ClassVar[float] = 0.01

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make p and a of each head."""
        return KerpleParameters(sizes.n_heads)

    def initial(self, name: str, shape: torch.Size) -> Tensor:
        """Draw p from U(0, 2), a from U(0, 1)."""
        return torch.empty(shape, device="cpu").uniform_(0, {"p": 2.0, "a": 1.0}[name])

    def by_distance(self, distance: Tensor, n_heads: int, parameters: nn.Module | None) -> Tensor:
        """Return `-p * ln(1 + a * distance)`."""
        assert isinstance(parameters, KerpleParameters)
        shape = (-1, *(1 for _ in distance.shape))
        p, a = (self._bounded(each.float()).view(shape) for each in (parameters.p, parameters.a))
        return -p * torch.log1p(a * distance)

    def _bounded(self, stored: Tensor) -> Tensor:
        """Clamp values to `LEAST` or more, with the gradient of the identity."""
        return stored + (stored.clamp(min=self.LEAST) - stored).detach()

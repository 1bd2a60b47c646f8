"""FIRE: a small network maps the distance, as a share of the query's position on a log scale, to a bias."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gptstar.fields import Count
from gptstar.model.positions.base import Pairs, Positions, Sizes

WIDTH = 32
"""Hidden features of the network."""

INITIAL_C = 0.1

UNKNOWN_CONTEXT = 512
"""The threshold that is assumed if no training context is known, as in the authors' code."""

HIDDEN_AT_ONCE = 2**24
"""Hidden features computed at once: 64 MiB. One row of queries may need more. Training keeps all of them."""


class FireParameters(nn.Module):
    """The parameters of the network `1 → WIDTH → head`, and of the scaling of its input.

    It does not use `nn.Linear`, because it always computes in float32 and gets no weight decay.
    """

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.hidden_weight = nn.Parameter(torch.empty(WIDTH, 1))
        self.hidden_bias = nn.Parameter(torch.empty(WIDTH))
        self.out_weight = nn.Parameter(torch.empty(n_heads, WIDTH))
        self.out_bias = nn.Parameter(torch.empty(n_heads))
        self.c = nn.Parameter(torch.empty(1))
        self.multiplier = nn.Parameter(torch.empty(1))


@dataclass(frozen=True)
class Fire(Positions):
    """FIRE: attention adds `f(psi(i - j) / psi(max(i, |T|)))` to each score, where `psi(x) = ln(|c| x + 1)`.

    All layers share f, a network with 32 hidden features and a ReLU. i and j are the positions of query and key in the
    document. c is learned and starts at 0.1. T is learned as `multiplier * threshold`, where the multiplier starts at
    1, as in the authors' code.

    FlexAttention can't compute this bias, because it depends on i through a network. It is built by blocks of queries.

    Source: Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers", 2023,
    equation 9 and appendix.

    Attributes:
        threshold: the initial T in tokens; a training run uses its own context length, other models use 512.
    """

    threshold: Count | None = None

    def trained_with(self, context_length: int) -> "Fire":
        """Return FIRE with the training context as `threshold`, unless that is given."""
        return self if self.threshold is not None else replace(self, threshold=context_length)

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make the network, c and the multiplier of T."""
        return FireParameters(sizes.n_heads)

    def initial(self, name: str, shape: torch.Size) -> Tensor:
        """Draw the network's weights as PyTorch's linear layers do: from U(-b, b) with `b = 1 / sqrt(inputs)`."""
        if name in ("c", "multiplier"):
            return torch.full(shape, INITIAL_C if name == "c" else 1.0, device="cpu")
        bound = 1 / math.sqrt(1 if name.startswith("hidden") else WIDTH)
        return torch.empty(shape, device="cpu").uniform_(-bound, bound)

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        """Compute the network for each pair; without gradients, in pieces of `HIDDEN_AT_ONCE`."""
        assert isinstance(parameters, FireParameters)
        places = pairs.queries if pairs.places is None else pairs.places  # (batch or 1, query)
        c = parameters.c.float().abs()
        from_threshold = parameters.multiplier.float() * (self.threshold or UNKNOWN_CONTEXT)
        size = torch.log1p(c * torch.maximum(places.float(), from_threshold.abs())).clamp(min=1e-6)
        near = torch.log1p(c * pairs.distance[:, 0].clamp(min=0))  # (batch or 1, query, key)
        shares = near / size[:, :, None]
        if not torch.is_grad_enabled():
            n_rows = max(1, HIDDEN_AT_ONCE // (WIDTH * shares.shape[0] * shares.shape[2]))
            bias = shares.new_empty(shares.shape[0], n_heads, *shares.shape[1:])
            for start in range(0, shares.shape[1], n_rows):
                bias[:, :, start : start + n_rows] = _network(shares[:, start : start + n_rows], parameters)
            return bias
        return _network(shares, parameters)


def _network(x: Tensor, parameters: FireParameters) -> Tensor:
    """Apply the network to each pair: `(batch, query, key)` → `(batch, head, query, key)`."""
    hidden = linear(x[..., None], parameters.hidden_weight.float(), parameters.hidden_bias.float()).relu()
    return linear(hidden, parameters.out_weight.float(), parameters.out_bias.float()).movedim(-1, 1)

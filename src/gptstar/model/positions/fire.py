"""FIRE: a small network reads the distance as a share of the query's position, on a logarithmic scale."""

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
"""The threshold where no training context is known: that of the authors' code."""

HIDDEN_AT_ONCE = 2**24
"""Hidden features computed at once, 64 MiB, in one row of queries at least. Training keeps them all."""


class FireParameters(nn.Module):
    """The network, `1 → WIDTH → head`, and what scales its input.

    Not `nn.Linear`: it computes in float32 whatever the model does, and has no weight decay.
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
    """A score gets `f(psi(i - j) / psi(max(i, |T|)))` with `psi(x) = ln(|c| x + 1)`, shared by layers.

    f is a network with 32 hidden features and a ReLU. i and j count within the document. c is learned and starts at
    0.1; T is learned as `multiplier * threshold`, with a multiplier that starts at 1, as in the authors' code.

    FlexAttention can't express it: its bias depends on i, not on the distance alone, through a network. It is built by
    blocks of queries, in training, too.

    Source: Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers", 2023,
    equation 9 and appendix.

    Attributes:
        threshold: T at the start, in tokens. A training run takes its context length; a model that is built without
            one takes 512.
    """

    threshold: Count | None = None

    def trained_with(self, context_length: int) -> "Fire":
        """Let T start at the training context, unless it is given."""
        return self if self.threshold is not None else replace(self, threshold=context_length)

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make the network, c and the multiplier of T."""
        return FireParameters(sizes.n_heads)

    def initial(self, name: str, shape: torch.Size) -> Tensor:
        """Draw the network as PyTorch draws linear layers: from U(-b, b), b the root of one over the inputs."""
        if name in ("c", "multiplier"):
            return torch.full(shape, INITIAL_C if name == "c" else 1.0, device="cpu")
        bound = 1 / math.sqrt(1 if name.startswith("hidden") else WIDTH)
        return torch.empty(shape, device="cpu").uniform_(-bound, bound)

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        """Compute the network for each pair, in pieces where there are many."""
        assert isinstance(parameters, FireParameters)
        places = pairs.queries if pairs.places is None else pairs.places  # (batch or 1, query)
        c = parameters.c.float().abs()
        from_threshold = parameters.multiplier.float() * (self.threshold or UNKNOWN_CONTEXT)
        size = torch.log1p(c * torch.maximum(places.float(), from_threshold.abs())).clamp(min=1e-6)
        near = torch.log1p(c * pairs.distance[:, 0].clamp(min=0))  # (batch or 1, query, key)
        shares = near / size[:, :, None]
        if not torch.is_grad_enabled():
            n_rows = max(1, HIDDEN_AT_ONCE // (WIDTH * shares.shape[0] * shares.shape[2]))
            found = shares.new_empty(shares.shape[0], n_heads, *shares.shape[1:])
            for start in range(0, shares.shape[1], n_rows):
                found[:, :, start : start + n_rows] = _network(shares[:, start : start + n_rows], parameters)
            return found
        return _network(shares, parameters)


def _network(x: Tensor, parameters: FireParameters) -> Tensor:
    """`(batch, query, key)` → `(batch, head, query, key)`."""
    of_hidden = (parameters.hidden_weight, parameters.hidden_bias)
    hidden = linear(x[..., None], *(each.float() for each in of_hidden)).relu()
    return linear(hidden, parameters.out_weight.float(), parameters.out_bias.float()).movedim(-1, 1)

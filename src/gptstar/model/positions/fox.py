"""FoX, the forgetting transformer: a gate reads each token, and scores lose what the gates since then forgot."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from gptstar.model.positions.base import Pairs, Positions, Sizes


class FoxParameters(nn.Module):
    """The gate of a layer, `d_model → head`."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, n_heads)


@dataclass(frozen=True)
class Fox(Positions):
    """A score gets `c_i - c_j`, where c sums `ln f` over tokens, and `f = sigmoid(w x + b)` reads the layer's input.

    Each head of each layer has a gate; b starts at 0. x is the normed input of the block. The KV cache keeps `ln f` of
    each token. Weight decay applies to w.

    c reaches thousands, where float32 has steps of 1e-4 and more. So it is summed in float64, and differences are taken
    of a float32 and of what that left over. FlexAttention can't express these sums: the bias is built by blocks of
    queries.

    Source: Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate", 2025, equations 4 to 6.
    """

    per_layer: ClassVar[bool] = True

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make a layer's gate."""
        return FoxParameters(sizes.d_model, sizes.n_heads)

    def per_token(self, x: Tensor, parameters: nn.Module | None) -> Tensor:
        """`ln f`: `(batch, head, position, 1)`."""
        assert isinstance(parameters, FoxParameters)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16's rounding would add up over a text
            gates = parameters.gate(x.float() if torch.is_autocast_enabled(x.device.type) else x)
        return logsigmoid(gates.float()).transpose(1, 2)[..., None]

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        """Sum `ln f` of the tokens after the key, up to the query."""
        assert per_token is not None
        logs = per_token[..., 0].double()  # (batch, head, key)
        if not pairs.is_run:  # of the tokens that a query attends to: others may stand between, of another branch
            seen = logs[:, :, None].where(pairs.mask[:, None], 0.0)
            return (seen.flip(-1).cumsum(-1).flip(-1) - seen).float()
        sums = logs.cumsum(-1)
        wide = sums.float()
        rest = (sums - wide.double()).float().detach()  # all of the gradient goes by `wide`
        first = -pairs.queries.shape[1]
        difference = wide[:, :, first:, None] - wide[:, :, None]
        return difference.add_(rest[:, :, first:, None] - rest[:, :, None])

"""FoX, the forgetting transformer: a forget gate for each token lowers the scores of all earlier keys."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from gptstar.model.positions.base import Pairs, Positions, Sizes


class FoxParameters(nn.Module):
    """The forget gates of a layer's heads, `d_model → head`."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, n_heads)


@dataclass(frozen=True)
class Fox(Positions):
    """FoX: attention adds `c_i - c_j` to each score, where c is the running sum of `ln f` and `f = sigmoid(w x + b)`.

    Each head of each layer has a gate f; b starts at 0. x is the normed input of the block. The KV cache stores `ln f`
    of each token. Weight decay applies to w.

    c reaches thousands, where float32 has a resolution of 1e-4 or worse. So c is summed in float64 and split into two
    float32 numbers, and the difference is taken of each. FlexAttention can't compute these sums: the bias is built by
    blocks of queries.

    Source: Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate", 2025, equations 4 to 6.
    """

    per_layer: ClassVar[bool] = True

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make a layer's gates."""
        return FoxParameters(sizes.d_model, sizes.n_heads)

    def per_token(self, x: Tensor, parameters: nn.Module | None) -> Tensor:
        """Return `ln f` of each token: `(batch, head, position, 1)`."""
        assert isinstance(parameters, FoxParameters)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16's rounding would add up over a text
            gates = parameters.gate(x.float() if torch.is_autocast_enabled(x.device.type) else x)
        return logsigmoid(gates.float()).transpose(1, 2)[..., None]

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        """Return the sum of `ln f` over the tokens after the key, up to and including the query."""
        assert per_token is not None
        logs = per_token[..., 0].double()  # (batch, head, key)
        if not pairs.is_run:  # sum only tokens that the query attends to: the cache may hold tokens of other branches
            visible = logs[:, :, None].where(pairs.mask[:, None], 0.0)
            return (visible.flip(-1).cumsum(-1).flip(-1) - visible).float()
        sums = logs.cumsum(-1)
        wide = sums.float()
        rest = (sums - wide.double()).float().detach()  # the whole gradient flows through `wide`
        first = -pairs.queries.shape[1]
        difference = wide[:, :, first:, None] - wide[:, :, None]
        return difference.add_(rest[:, :, first:, None] - rest[:, :, None])

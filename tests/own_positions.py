"""Two kinds of positions as a user would write them, in one module of their own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gptstar.fields import Count, Positive
from gptstar.model.positions import POSITIONS, Pairs, Positions


class Table(nn.Module):
    def __init__(self, rows: int, n_heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(rows, n_heads))


@POSITIONS.register("table")
@dataclass(frozen=True)
class TablePositions(Positions):
    """A learned bias for each distance up to `reach`, one table for all layers."""

    reach: Count
    scale: Positive = 1.0

    def parameters(self, sizes):
        return Table(self.reach + 1, sizes.n_heads)

    def initial(self, name: str, shape: torch.Size) -> Tensor | None:
        assert name == "table"
        return torch.empty(shape, device="cpu").uniform_(-2, 2)

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        rows = parameters.table.float()[pairs.distance[:, 0].clamp(0, self.reach)]  # (batch or 1, query, key, head)
        return self.scale * rows.permute(0, 3, 1, 2)


class Gate(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, n_heads)


@POSITIONS.register("forgets")
@dataclass(frozen=True)
class ForgetfulPositions(Positions):
    """A gate of each layer reads its input; a score loses the logarithms of all gates between key and query."""

    per_layer: ClassVar[bool] = True

    def parameters(self, sizes):
        return Gate(sizes.d_model, sizes.n_heads)

    def per_token(self, x: Tensor, parameters: nn.Module | None) -> Tensor:
        return nn.functional.logsigmoid(parameters.gate(x).float()).transpose(1, 2)[..., None]

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        logs = per_token[..., 0][:, :, None].where(pairs.mask[:, None], 0.0)  # (batch, head, query, key)
        return logs.flip(-1).cumsum(-1).flip(-1) - logs  # of the keys after this one

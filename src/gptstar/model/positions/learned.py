"""Learned positions: a learned vector for each position, added to the token's embedding."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gptstar.model.positions.base import Positions, Sizes


@dataclass(frozen=True)
class Learned(Positions):
    """Learned positions: a table of `n_ctx` vectors (`model.n_ctx`). The model can't read longer texts.

    Attributes:
        n_ctx: the rows of the table; set by `model.n_ctx`.

    Source: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018, section 3.1.
    """

    n_ctx: int | None = None

    name_in_model: ClassVar[str] = "position_embedding"

    @property
    def capacity(self) -> int | None:
        """The number of rows of the table."""
        return self.n_ctx

    @property
    def needs_capacity(self) -> bool:
        """Whether the number of rows is still missing."""
        return self.n_ctx is None

    def with_capacity(self, n_ctx: int) -> "Learned":
        """Return a table of `n_ctx` rows."""
        return Learned(n_ctx)

    def check(self, sizes: Sizes) -> None:
        """Refuse a table without a size."""
        if self.n_ctx is None:
            raise ValueError("model.positions=learned needs a capacity: give model.n_ctx (GPT-2's is 1024)")

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make the table of vectors."""
        assert self.n_ctx is not None
        return nn.Embedding(self.n_ctx, sizes.d_model)

    def embed(self, x: Tensor, at: Tensor | None, parameters: nn.Module | None) -> Tensor:
        """Add the row of each position."""
        assert isinstance(parameters, nn.Embedding)
        return x + (parameters.weight[: x.shape[1]] if at is None else parameters.weight[at])

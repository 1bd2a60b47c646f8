"""No positions: the model learns the order of tokens from the causal mask alone."""

from dataclasses import dataclass

from gptstar.model.positions.base import Positions


@dataclass(frozen=True)
class NoPositions(Positions):
    """Positions that add nothing and rotate nothing.

    Source: Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization in Transformers", 2023.
    """

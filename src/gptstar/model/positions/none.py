"""No positions: causal masking alone tells a model of the order of its tokens."""

from dataclasses import dataclass

from gptstar.model.positions.base import Positions


@dataclass(frozen=True)
class NoPositions(Positions):
    """Nothing is added and nothing is rotated.

    Source: Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization in Transformers", 2023.
    """

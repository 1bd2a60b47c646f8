"""How much a model makes of a longer context."""

from gptstar.evaluation.length.config import LengthConfig

__all__ = ["LengthConfig"]

"""Loss against context length: whether a model uses a longer context."""

from gptstar.evaluation.length.config import LengthConfig

__all__ = ["LengthConfig"]

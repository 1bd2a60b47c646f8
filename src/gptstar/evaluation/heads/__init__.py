"""The distribution of attention over distance: how far each head sees, and whether it is blind beyond training."""

from gptstar.evaluation.heads.config import HeadsConfig

__all__ = ["HeadsConfig"]

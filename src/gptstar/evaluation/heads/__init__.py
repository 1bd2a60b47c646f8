"""Where attention's weight goes: how far each head sees, and whether it is blind beyond the training context."""

from gptstar.evaluation.heads.config import HeadsConfig

__all__ = ["HeadsConfig"]

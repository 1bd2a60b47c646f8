"""Whether a model finds a value by its key, at any distance and among any number of pairs."""

from gptstar.evaluation.recall.config import RecallConfig

__all__ = ["RecallConfig"]

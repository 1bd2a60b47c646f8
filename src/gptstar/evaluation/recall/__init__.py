"""Recall: whether a model finds a value by its key, by distance and by number of pairs."""

from gptstar.evaluation.recall.config import RecallConfig

__all__ = ["RecallConfig"]

"""Optimizers, one file each. Each knows what it builds, what it costs, and how its state is saved and restored."""

from gptstar.training.optimizers import adamw, adamw_8bit, muon
from gptstar.training.optimizers.base import OPTIMIZERS, Optimizer, state_by_name

__all__ = ["OPTIMIZERS", "Optimizer", "adamw", "adamw_8bit", "muon", "state_by_name"]

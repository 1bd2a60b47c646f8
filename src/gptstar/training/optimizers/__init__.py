"""Optimizers, one file each, with the memory that each needs and how its state is saved and restored."""

from gptstar.training.optimizers import adamw, adamw_8bit, muon
from gptstar.training.optimizers.base import OPTIMIZERS, Optimizer, state_by_name

__all__ = ["OPTIMIZERS", "Optimizer", "adamw", "adamw_8bit", "muon", "state_by_name"]

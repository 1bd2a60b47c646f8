"""Learning-rate schedules, one file each."""

from gptstar.training.schedules import constant, cosine, inverse_sqrt, linear, wsd
from gptstar.training.schedules.base import SCHEDULES, Schedule

__all__ = ["SCHEDULES", "Schedule", "constant", "cosine", "inverse_sqrt", "linear", "wsd"]

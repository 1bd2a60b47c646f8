"""Kinds of weight averaging, one file each."""

from gptstar.training.averaging import ema, none, tail
from gptstar.training.averaging.base import AVERAGING, Averaging, RunningAverage

__all__ = ["AVERAGING", "Averaging", "RunningAverage", "ema", "none", "tail"]

"""Averages of the weights over steps, one file each. Each knows its shares and what it costs."""

from gptstar.training.averaging import ema, none, tail
from gptstar.training.averaging.base import AVERAGING, Averaging, RunningAverage

__all__ = ["AVERAGING", "Averaging", "RunningAverage", "ema", "none", "tail"]

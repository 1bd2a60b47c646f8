"""The learning rate as a function of the step."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from gptstar.errors import ConfigError

DECAYING = ("cosine", "linear", "wsd")
WSD_SHARE = 0.2
"""Of a run that a `wsd` schedule decays in, unless told. Source: Hägele et al., 2024, section 4.1."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up from zero to the peak, then a shape.

    Attributes:
        warmup_steps: steps from zero to the peak.
        shape: `cosine` and `linear`, to a fraction of the peak, then constant; `wsd`, at the peak until `decay_steps`
            before the end, then down; `inverse_sqrt`, half the peak after four times the warm-up's steps; `constant`.
        final_fraction: what is left of the peak at the end of the decay, of `cosine`, `linear` and `wsd`.
        decay_until: the step at which their decay ends; the run's last step unless given.
        decay_steps: of `wsd`; a fifth of the run unless given.

    Sources: Loshchilov and Hutter, "SGDR", 2017 (cosine); Bergsma et al., "Straight to zero: why linearly decaying the
    learning rate to zero works best for LLMs", 2025 (linear); Hägele et al., "Scaling laws and compute-optimal training
    beyond fixed training durations", 2024 (`wsd`, with their 1 - sqrt decay); Vaswani et al., "Attention is all you
    need", 2017, section 5.3 (inverse square root).
    """

    warmup_steps: int
    shape: Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"] = "cosine"
    final_fraction: float = 0.1
    decay_until: int | None = None
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps={self.warmup_steps} is negative")
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ConfigError(f"schedule.final_fraction={self.final_fraction} is not in [0, 1]")
        if self.decay_steps is not None and self.shape != "wsd":
            raise ConfigError(
                f"schedule.decay_steps is of schedule=wsd, and schedule.shape is {self.shape}: leave it out"
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ConfigError(f"schedule.decay_steps={self.decay_steps} is below 1")
        if self.decay_until is None:
            return
        if self.shape not in DECAYING:
            raise ConfigError(
                f"schedule.decay_until: schedule.shape={self.shape} ends no decay: leave it out, "
                "or give schedule.decay_until=null where an experiment sets it"
            )
        if self.decay_until <= self.warmup_steps:
            raise ConfigError(
                f"schedule.decay_until={self.decay_until} is not after schedule.warmup_steps={self.warmup_steps}"
            )

    def resolved(self, total_steps: int) -> Self:
        """The same schedule for a run of so many steps, with nothing left to derive.

        Raises:
            ConfigError: the run is too short for it.
        """
        if self.shape not in DECAYING:
            return self
        end = self.decay_until or total_steps
        decay = None
        if self.shape == "wsd":
            decay = self.decay_steps or max(1, round(WSD_SHARE * end))
        if self.warmup_steps + (decay or 1) > end:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} leaves nothing of total_steps={total_steps} to decay in: "
                "shorten the warm-up"
                if decay is None
                else f"schedule.warmup_steps={self.warmup_steps} and schedule.decay_steps={decay} are more than the "
                f"{end} steps until the decay ends: shorten one of them"
            )
        return replace(self, decay_until=end, decay_steps=decay)

    def fraction(self, step: int) -> float:
        """Share of the peak learning rate that the update after `step` finished steps uses; of a resolved schedule."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.shape == "constant":
            return 1.0
        if self.shape == "inverse_sqrt":
            return math.sqrt(max(1, self.warmup_steps) / max(1, step))
        assert self.decay_until is not None
        begin = self.decay_until - (self.decay_steps or 0) if self.shape == "wsd" else self.warmup_steps
        progress = min(1.0, max(0, step - begin) / max(1, self.decay_until - begin))
        left = {
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
            "linear": 1.0 - progress,
            "wsd": 1.0 - math.sqrt(progress),
        }[self.shape]
        return self.final_fraction + (1.0 - self.final_fraction) * left

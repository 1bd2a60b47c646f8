"""What reading after the last step may cost: a tenth of the training's floating-point operations."""

from collections.abc import Sequence
from dataclasses import dataclass

from gptstar.evaluation.length.config import LengthConfig
from gptstar.model import GPTConfig

SHARE = 0.1
"""Of the operations of training."""

PASSES = 3
"""Forward passes that a token costs in training: the backward pass takes about two."""

LEAST_WINDOWS = 16
"""Blocks of targets below which no interval is worth its name, so nothing is read."""

MOST_TARGETS = 2**12
"""Targets of the report's reading at most, whatever the run could afford."""

BIGRAM_TOKENS = 2**24
"""Tokens that a bigram is counted on at most: a second on a CPU, and half a gigabyte."""

LEAST_STUDY = 2**10
"""Targets of a study that the user asked for, however short the run."""


@dataclass(frozen=True)
class Budget:
    """The operations that a run which has ended may spend on reading.

    Attributes:
        trained_at: the context length in training, in tokens.
        trained_tokens: tokens that the run read.
    """

    model: GPTConfig
    trained_at: int
    trained_tokens: int

    @property
    def operations(self) -> float:
        """Floating-point operations that may be spent."""
        return SHARE * self.trained_tokens * self.model.training_flops(self.trained_at)

    def _forward(self, length: int) -> float:
        """Operations of a token in a forward pass of a window of so many tokens."""
        return self.model.training_flops(length) / PASSES

    def fixed_targets(self, lengths: Sequence[int]) -> int:
        """Targets of a reading with `fixed_targets`, in blocks of half the shortest length; 0 if too few."""
        block = max(1, min(lengths) // 2)
        each = sum(length * self._forward(length) for length in lengths)
        windows = min(int(self.operations / each), MOST_TARGETS // block)
        return windows * block if windows >= LEAST_WINDOWS else 0

    def study_targets(self, config: LengthConfig) -> int | None:
        """Targets of the study at the end of a run whose configuration leaves their number open; else what it says.

        `LEAST_STUDY` is read whatever it costs: the user asked for the study.
        """
        if config.max_tokens is not None or config.limit is None:
            return config.max_tokens
        lengths = config.with_control(config.lengths(self.trained_at))
        block = config.targets or max(1, min(lengths) // 2)
        n_readings = len(config.scalings_of(self.model.positions)) + len(config.cuts)
        each = n_readings * sum(
            self._forward(length)
            * {
                "disjoint": 1,
                "sliding": 2 if config.stride is None else -(-length // config.stride),
                "fixed_targets": -(-length // block),
            }[config.protocol]
            for length in lengths
        )
        return min(config.limit, max(LEAST_STUDY, int(self.operations / each)))

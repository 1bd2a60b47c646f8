"""The compute budget of evaluation after the last step: a tenth of the training's floating-point operations."""

from collections.abc import Sequence
from dataclasses import dataclass

from gptstar.evaluation.length.config import LengthConfig
from gptstar.model import GPTConfig

SHARE = 0.1
"""The budget as a share of the training's operations."""

PASSES = 3
"""The cost of training on a token, in forward passes: the backward pass costs about two."""

LEAST_WINDOWS = 16
"""The fewest blocks of targets for a confidence interval; with fewer, nothing is read."""

MOST_TARGETS = 2**12
"""The most targets that the final report reads, even if the budget allows more."""

TARGETS, ROOM = 2**5, 2**11
"""The report's targets in a block, and the tokens before each block, unless a length needs others. With the same
values, runs of different training contexts score the same targets, so that they can be compared."""

LEAST_STRETCHES = 8
"""The fewest stretches of `ROOM` tokens of held-out text for an interval; in less text the room is smaller."""

BIGRAM_TOKENS = 2**24
"""The most tokens for counting a bigram model: they take a second on a CPU, and half a gigabyte."""

LEAST_STUDY = 2**10
"""The fewest targets of a length study, even if a short run's budget allows fewer."""


@dataclass(frozen=True)
class Budget:
    """The floating-point operations that a finished run may spend on evaluation.

    Attributes:
        model: the configuration of the model.
        trained_at: the context length in training, in tokens.
        trained_tokens: the number of tokens that the run read.
    """

    model: GPTConfig
    trained_at: int
    trained_tokens: int

    @property
    def operations(self) -> float:
        """The floating-point operations that may be spent."""
        return SHARE * self.trained_tokens * self.model.training_flops(self.trained_at)

    def _forward(self, length: int) -> float:
        """Return the operations per token of a forward pass over `length` tokens."""
        return self.model.training_flops(length) / PASSES

    @staticmethod
    def block(lengths: Sequence[int]) -> int:
        """Return the number of targets in a block of the report's reading: at most half the shortest length."""
        return max(1, min(TARGETS, min(lengths) // 2))

    def fixed_targets(self, lengths: Sequence[int]) -> int:
        """Return how many targets the report can read, in whole blocks; 0 if too few."""
        block = self.block(lengths)
        each = sum(length * self._forward(length) for length in lengths)
        windows = min(int(self.operations / each), MOST_TARGETS // block)
        return windows * block if windows >= LEAST_WINDOWS else 0

    def study_targets(self, config: LengthConfig) -> int | None:
        """Return the number of targets for the length study at the end of a run, within its configuration and budget.

        The study reads at least `LEAST_STUDY` targets whatever they cost, because the user requested it.
        """
        if config.max_tokens is not None or config.limit is None:
            return config.max_tokens
        lengths = config.with_control(config.lengths(self.trained_at))
        block = config.targets or max(1, min(lengths) // 2)
        n_readings = len(config.scalings_of(self.model.positions)) + len(config.control_readings)
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

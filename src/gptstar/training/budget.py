"""What reading after the last step may cost: a tenth of the training's compute, counted in tokens that are read."""

from collections.abc import Sequence

from gptstar.evaluation.length.config import LengthConfig

SHARE = 0.1
"""Of the compute of training."""

PASSES = 3
"""Forward passes that a token costs in training: the backward pass takes about two."""

LEAST_WINDOWS = 16
"""Blocks of targets below which no interval is worth its name, so nothing is read."""

MOST_TARGETS = 2**12
"""Targets of the report's reading at most, whatever the run could afford."""

BIGRAM_TOKENS = 2**24
"""Tokens that a bigram is counted on at most: a second on a CPU, and half a gigabyte."""

LEAST_STUDY = 2**10
"""Targets of a study, however short the run."""


def forward_tokens(trained_tokens: int) -> int:
    """Tokens that may be read after a training on so many."""
    return int(SHARE * PASSES * trained_tokens)


def fixed_targets(lengths: Sequence[int], trained_tokens: int) -> int:
    """Targets of a reading with `fixed_targets`, in blocks of half the shortest length; 0 if too few are affordable."""
    block = max(1, min(lengths) // 2)
    windows = min(forward_tokens(trained_tokens) // sum(lengths), MOST_TARGETS // block)
    return windows * block if windows >= LEAST_WINDOWS else 0


def study_targets(config: LengthConfig, trained_at: int, trained_tokens: int) -> int | None:
    """Targets of the study at the end of a run whose configuration leaves their number open; else what it says."""
    if config.max_tokens is not None or config.limit is None:
        return config.max_tokens
    lengths = config.lengths(trained_at)
    block = config.targets or max(1, min(lengths) // 2)
    read = {  # tokens that go through the model for each target
        "disjoint": len(lengths),
        "sliding": sum(2 if config.stride is None else -(-length // config.stride) for length in lengths),
        "fixed_targets": -(-sum(lengths) // block),
    }
    affordable = forward_tokens(trained_tokens) // read[config.protocol]
    return min(config.limit, max(LEAST_STUDY, affordable))

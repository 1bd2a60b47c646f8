"""What a worker does when it is asked for a round, and how a round is timed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptstar.model import GPTConfig

LEAST_SECONDS = 0.5
"""A round is as many steps as take this long: one of milliseconds would measure the clock and the scheduler."""

LONG_SECONDS = 2.0

GPU_WARMUP = 4


@dataclass(frozen=True)
class Job:
    """Something built once and measured in rounds.

    Attributes:
        round: one round; returns seconds a step, or several figures by name.
        tokens: a step, all rows together.
        flops: floating-point operations a token; 0 where the limit is another.
        weight_bytes: bytes of weights that a step has to read; 0 where the limit is another.
        n_params: of the model.
        first_step: seconds of the first training step, or of the first text where decoding is compiled, compilation
            included; 0 where it is not measured.
        main: what has to run on the main thread while rounds are asked for, such as a training loop.
    """

    round: Callable[[], float | dict[str, float]]
    tokens: int
    flops: float = 0.0
    weight_bytes: float = 0.0
    n_params: int = 0
    first_step: float = 0.0
    main: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timed:
    """A round of equal steps. On a GPU an untimed step goes first, and the memory it caches is given back at the end.

    So several processes fit one card: between rounds each holds only weights and the optimizer's state.

    Attributes:
        steps: of a round.
        first: seconds of the first step of the warm-up; 0 without a warm-up.
    """

    step: Callable[[], object]
    steps: int
    first: float
    device: str

    def __call__(self) -> float:
        """Seconds a step."""
        if self.device != "cuda":
            return seconds_a_step(self.step, self.steps, self.device)
        self.step()
        seconds = seconds_a_step(self.step, self.steps, self.device)
        torch.cuda.empty_cache()
        return seconds


def timed(step: Callable[[], object], device: str, warmup: int = 2) -> Timed:
    """A round: as many steps as take `LEAST_SECONDS`, which the warm-up tells; a single one without a warm-up.

    Args:
        warmup: steps on a CPU; a GPU, whose first steps compile and tune kernels, takes `GPU_WARMUP`.
    """
    times: list[float] = []
    for _ in range(GPU_WARMUP if device == "cuda" else warmup):
        times.append(seconds_a_step(step, 1, device))
        if device != "cuda" and times[-1] > LONG_SECONDS:  # of which the first is as good as any
            break
    if device == "cuda":
        torch.cuda.empty_cache()
    steps = max(1, math.ceil(LEAST_SECONDS / times[-1])) if times else 1
    return Timed(step, steps, times[0] if times else 0.0, device)


def seconds_a_step(step: Callable[[], object], steps: int, device: str) -> float:
    """The mean over so many steps, one after the other."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return (time.perf_counter() - start) / steps


def synchronise(device: str) -> None:
    """Wait for what a GPU was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def training_flops(matmul_params: int, config: GPTConfig, context: int) -> float:
    """Floating-point operations a training token costs: `6 N + 12 L H K T`.

    Args:
        matmul_params: N, all but tables that are only looked up in.

    Source: Chowdhery et al., "PaLM", 2022, appendix B.
    """
    return 6 * matmul_params + 12 * config.n_layers * config.n_heads * config.head_width * context

"""The memory of a process: its peak, its part of a shared GPU, and what the C library keeps."""

import ctypes
import os
import sys

import torch

from gptstar.errors import ConfigError

GPU_PART = "GPTSTAR_GPU_PART"
"""The variable that tells a job of a sweep which part of a GPU's memory is its own, such as 0.25."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's `mallopt`, from malloc.h."""


def keep_freed_memory() -> bool:
    """Let the C library keep what PyTorch frees on the CPU, for the rest of the process.

    A training step makes and frees the same large tensors again and again. By default each is mapped afresh, and the
    kernel clears every page of it: about a fifth of a step of GPT-127*.

    Returns:
        Whether the C library took the options; only glibc does.

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_MAX, 0) == 1 == mallopt(M_TRIM_THRESHOLD, -1)


def own_part() -> float:
    """This process's part of a GPU's memory: 1, unless it is a job of a sweep that shares the GPU.

    Raises:
        ConfigError: the variable holds something else.
    """
    given = os.environ.get(GPU_PART, "1")
    try:
        part = float(given)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise ConfigError(
            f"{GPU_PART}={given} in the environment is not in (0, 1]: unset it; sweeps set it by themselves"
        )
    return part


def stay_within_own_part() -> None:
    """Keep this process to its part of a GPU that jobs of a sweep share, so that it can't take theirs."""
    if (part := own_part()) < 1:
        torch.cuda.set_per_process_memory_fraction(part)

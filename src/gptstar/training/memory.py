"""The memory of a process: its share of a GPU, and reuse of freed memory by the C library."""

import ctypes
import os
import sys

import torch

from gptstar.errors import ConfigError

GPU_PART = "GPTSTAR_GPU_PART"
"""The environment variable with the share of a GPU's memory that a sweep's job may use, such as 0.25."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's `mallopt`, from malloc.h."""


def keep_freed_memory() -> bool:
    """Make the C library reuse memory that PyTorch frees on the CPU, for the rest of the process.

    Every training step allocates and frees the same large tensors. By default each is mapped anew, and the kernel
    clears all of its pages, which takes about a fifth of a step of GPT-127*.

    Returns:
        Whether the C library accepted the options; only glibc does.

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_MAX, 0) == 1 == mallopt(M_TRIM_THRESHOLD, -1)


def own_part() -> float:
    """Return the share of a GPU's memory for this process: 1, unless jobs of a sweep share the GPU.

    Raises:
        ConfigError: the environment variable is not a share.
    """
    given = os.environ.get(GPU_PART, "1")
    try:
        part = float(given)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise ConfigError(f"{GPU_PART}={given} in the environment is not in (0, 1]: unset it; sweeps set it themselves")
    return part


def stay_within_own_part() -> None:
    """Limit this process to its share of a GPU's memory, so that other jobs of a sweep keep theirs."""
    if (part := own_part()) < 1:
        torch.cuda.set_per_process_memory_fraction(part)

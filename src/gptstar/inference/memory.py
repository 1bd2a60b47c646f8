"""Memory: what reading takes on a GPU, by arithmetic; what a machine has; and the most that was held, as measured."""

import contextlib
import os
import sys
from pathlib import Path

import torch

from gptstar.model import GPTConfig

MASK_CELL = 12
"""Bytes of a mask's cell: the bias and a masked copy of it in float32, and what it is made from."""

SHARE = 2
"""Reading may take 1 / `SHARE` of the free memory: the head's logits, workspaces and fragments need room."""


def activation_bytes(config: GPTConfig, itemsize: int) -> int:
    """Bytes that a block takes for each token, with `itemsize` bytes a value.

    It holds the residual, the normed input and attention's output; queries, keys and values, and a copy of them for
    attention; the MLP's hidden layer before and after its GELU.
    """
    heads = config.n_heads * config.head_width
    return itemsize * (3 * config.d_model + 6 * heads + 2 * config.mlp_width)


def cache_bytes(config: GPTConfig, itemsize: int) -> int:
    """Bytes that a KV cache takes for each token, with `itemsize` bytes a value."""
    return itemsize * 2 * config.n_layers * config.n_heads * config.head_width


def usable_bytes(device: torch.device) -> int:
    """Bytes of a GPU that reading may take: half of what neither PyTorch nor another process uses."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + cached) // SHARE


def machine_bytes() -> int:
    """Bytes of this machine's memory, whoever uses them."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes(device: torch.device) -> int | None:
    """The most memory held so far: a GPU's by this process, or all of this process's. None where it can't be known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    if sys.platform == "win32":
        return None
    import resource  # on Linux its figure may be that of the process which started this one

    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

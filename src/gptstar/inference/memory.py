"""Memory: estimates for reading on a GPU, the memory of a machine, and the measured peak."""

import contextlib
import os
import sys
from pathlib import Path

import torch

from gptstar.model import GPTConfig

MASK_CELL = 12
"""Bytes per element of an attention mask: the bias and a masked copy in float32, and their inputs."""

SHARE = 2
"""Reading may take 1 / `SHARE` of the free memory; the head's logits, workspaces and fragmentation need the rest."""


def activation_bytes(config: GPTConfig, itemsize: int) -> int:
    """Return the bytes that a block needs per token, with `itemsize` bytes per value.

    These are the residual, the normed input and attention's output; queries, keys and values, and a copy of them for
    attention; and the MLP's hidden layer before and after its GELU.
    """
    heads = config.n_heads * config.head_width
    return itemsize * (3 * config.d_model + 6 * heads + 2 * config.mlp_width)


def cache_bytes(config: GPTConfig, itemsize: int) -> int:
    """Return the bytes of a KV cache per token, with `itemsize` bytes per value."""
    return itemsize * 2 * config.n_layers * config.n_heads * config.head_width


def usable_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that reading may take: half of the memory that no process uses."""
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + cached) // SHARE


def machine_bytes() -> int:
    """Return the bytes of this machine's memory, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes(device: torch.device) -> int | None:
    """Return this process's peak memory in bytes, on the GPU or in total; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    if sys.platform == "win32":
        return None
    import resource  # on Linux this may be the figure of the parent process

    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

"""What the machine can do at most: products of matrices, and reading of memory; measured between the rounds."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import linear

from gptstar.training.hardware import PEAK_BF16_FLOPS, data_sheet_name
from speed.job import Job, synchronise

GEMM_SHAPES = {  # (rows, inputs, outputs)
    "cpu": ((1024, 1024, 4096), (1024, 4096, 1024), (2048, 2048, 2048)),
    "cuda": ((8192, 8192, 8192),),
}
BYTES = {"cpu": 2**29, "cuda": 2**31}
"""Bytes to read, or on a GPU to copy: more than any cache holds."""
IN_A_ROW = {"cpu": 1, "cuda": 20}
"""Products in one measurement: a GPU's clock falls under sustained load, and a training step is such a load."""
REPEATS = 4
DTYPES = {"gemm_bf16": torch.bfloat16, "gemm_float32": torch.float32}


def limits(names: tuple[str, ...], device: str) -> Job:
    """A job whose round measures these limits, each the best of some repetitions.

    `gemm_bf16`, `gemm_float32`: floating-point operations a second. `read_bandwidth`: bytes a second, read on a CPU; on
    a GPU a copy's, which reads and writes.
    """
    torch.manual_seed(0)
    products = {
        name: [
            (
                torch.randn(rows, inputs, dtype=dtype, device=device),
                torch.randn(outputs, inputs, dtype=dtype, device=device),
            )
            for rows, inputs, outputs in GEMM_SHAPES[device]
        ]
        for name, dtype in DTYPES.items()
        if name in names
    }
    words = torch.ones(BYTES[device] // 8 if "read_bandwidth" in names else 0, dtype=torch.int64, device=device)
    copied = torch.empty_like(words) if device == "cuda" else None
    in_a_row = IN_A_ROW[device]

    def measure() -> dict[str, float]:
        rates = {
            name: max(
                2 * x.numel() * len(weight) * in_a_row / _best(partial(linear, x, weight), device, in_a_row)
                for x, weight in pairs
            )
            for name, pairs in products.items()
        }
        if len(words) and copied is not None:
            rates["read_bandwidth"] = 2 * words.nbytes / _best(partial(copied.copy_, words), device)
        elif len(words):
            rates["read_bandwidth"] = words.nbytes / _best(words.sum, device)
        return rates

    measure()
    return Job(measure, tokens=0)


def _best(action: Callable[[], object], device: str, in_a_row: int = 1) -> float:
    """The least seconds that so many in a row take."""
    seconds = []
    for _ in range(REPEATS):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(in_a_row):
            action()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def data_sheet_peak(device: str) -> float | None:
    """A GPU's dense bfloat16 rate by its maker, operations a second; None where there is none to go by."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    known = data_sheet_name(name)
    return PEAK_BF16_FLOPS[known] if known else None


def describe(device: str) -> dict[str, str]:
    """The machine and what runs on it, in words."""
    about = {
        "processor": _cpu_name(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "threads": f"{torch.get_num_threads()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    return about | ({"device": torch.cuda.get_device_name(), "driver": _driver()} if device == "cuda" else {})


def _driver() -> str:
    """The version of NVIDIA's driver, and of CUDA as PyTorch was built with it."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        shown = []
    return f"driver {shown[0] if shown else 'unknown'}, CUDA {torch.version.cuda}"


def _cpu_name() -> str:
    """The model, and its widest instructions that matter here."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.read_text().splitlines())
    about = {key.strip(): value.strip() for key, _, value in lines}
    flags = about.get("flags", "").split()
    widest = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{about.get('model name', platform.machine())} ({', '.join(widest)})"

"""The precision of matrix products in an evaluation."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Compute matrix products in `dtype` within the context: float32 without TF32, or a narrower type by autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)

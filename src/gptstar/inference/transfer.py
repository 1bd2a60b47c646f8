"""Copies between the host and a GPU that don't wait for other work of the GPU."""

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; on a CPU the tensor shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class HostCopy:
    """A copy of tensors to the host in progress. Later work of the device doesn't delay it."""

    def __init__(self, *tensors: Tensor) -> None:
        """Start copying tensors from one device."""
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        device = tensors[0].device
        self._copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def wait(self) -> list[Tensor]:
        """Wait for the copies and return them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors

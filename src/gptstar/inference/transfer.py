"""Copies between the host and a GPU that wait for none of the GPU's other work."""

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device; on a CPU the tensor shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class HostCopy:
    """Tensors on their way to the host. What the device is given later does not delay them."""

    def __init__(self, *tensors: Tensor) -> None:
        """Start the copy of tensors that are on one device."""
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        device = tensors[0].device
        self._copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    def wait(self) -> list[Tensor]:
        """Wait for the copies, and return them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors

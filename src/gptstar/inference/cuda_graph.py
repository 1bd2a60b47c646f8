"""Run a function of static tensors as one CUDA graph, which launches all of its kernels at once."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 2
"""Number of ordinary calls before recording, on the recording stream: they initialise libraries and compile."""


class CudaGraph:
    """A function that runs normally a few times, is then recorded, and is replayed from then on.

    The function must read and write the same tensors at each call, and must not wait for the device. Calling this
    object has the effect of one call of the function. A replay overwrites the tensor that the previous replay returned.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        self._function, self._device, self._n_calls = function, device, 0
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    def __call__(self) -> Tensor:
        """Call the function."""
        self._n_calls += 1
        if self._n_calls <= WARM_UP:
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream), self._without_weight_cache():
                result = self._function()
            current.wait_stream(self._stream)
            return result
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may use the device at the same time, as in the demo.
            recording = torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local")
            with recording, self._without_weight_cache():
                self._result = self._function()
        assert self._result is not None
        self._graph.replay()
        return self._result

    @staticmethod
    def _without_weight_cache() -> torch.autocast:
        """Make autocast cast weights inside the graph, because its cached casts are freed when it ends."""
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        return torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False)

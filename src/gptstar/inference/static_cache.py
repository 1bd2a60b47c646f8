"""A KV cache for a step that is recorded as a CUDA graph."""

import torch
from torch import Tensor, nn

from gptstar.model.view import Cache


class StaticCache(Cache):
    """A cache whose tensors never change shape or address, so that a CUDA graph can write to it.

    It starts as a `Cache` does, and reads the prompts. After `fix` each layer adds one token at a time, at a place that
    a tensor holds, and sees the whole capacity: the mask hides the places that are still empty.
    """

    def __init__(self, capacity: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(capacity, dtype)
        self._place: Tensor | None = None

    def fix(self, place: Tensor) -> None:
        """Write from now on at `place`, `(1,)`, int64, on the device; the caller moves it on."""
        self._place = place
        self._lengths = dict.fromkeys(self._memory, self._capacity)

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's keys and values, and return the filled part, or after `fix` the whole capacity."""
        if self._place is None:
            return super().extend(layer, key, value)
        keys, values = self._memory[layer]
        keys.index_copy_(2, self._place, key.to(keys.dtype))
        values.index_copy_(2, self._place, value.to(values.dtype))
        return keys, values

    def _allocate(self, like: Tensor, n_tokens: int) -> Tensor:
        assert n_tokens <= self._capacity
        return super()._allocate(like, n_tokens).zero_()  # a hidden place has weight 0, and 0 times NaN is NaN

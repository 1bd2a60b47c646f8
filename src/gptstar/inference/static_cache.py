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

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """As `Cache.extend`; after `fix` it returns the whole capacity."""
        if self._place is None:
            return super().extend(layer, key, value, *more)
        for memory, part in zip(self._memory[layer], (key, value, *more), strict=True):
            memory.index_copy_(2, self._place, part.to(memory.dtype))
        return tuple(self._memory[layer])

    def _allocate(self, like: Tensor, n_tokens: int, dtype: torch.dtype) -> Tensor:
        assert n_tokens <= self._capacity
        return super()._allocate(like, n_tokens, dtype).zero_()  # a hidden place has weight 0, and 0 times NaN is NaN

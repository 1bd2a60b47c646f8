"""ALiBi as a modification of scores inside PyTorch's FlexAttention, compiled: the form for GPUs."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it is compiled by itself, within a compiled model too
def flex_alibi_attention(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """Causal attention with ALiBi in one kernel, which keeps neither scores nor bias and skips what is not seen.

    Args:
        query: `(batch, head, position, d_head)`; `key` and `value` likewise.
        slopes: `(head,)`, float32.

    Returns:
        `(batch, head, position, d_head)`.

    Source: Dong et al., "Flex Attention", 2024.
    """

    def alibi(score: Tensor, _batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        return score - slopes[head] * (query_at - key_at)

    with torch.autocast(query.device.type, enabled=False):
        return _compiled()(query, key, value, score_mod=alibi, block_mask=_causal(query.shape[2], query.device))


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """Uncompiled it would make all scores."""
    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=16)
def _causal(n_positions: int, device: torch.device) -> BlockMask:
    """Which blocks of keys a block of queries sees at all."""

    def seen(_batch: Tensor, _head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        return query_at >= key_at

    with torch.inference_mode(False):  # what is made within it can't be used in training
        return create_block_mask(seen, None, None, n_positions, n_positions, device=str(device))

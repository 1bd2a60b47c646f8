"""The choice of an implementation of attention and loss for a device; no other file makes this choice.

A compiler receives the plain implementation, as one graph. A CPU that runs eagerly uses hand-written ones.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

AttentionForm = Literal["auto", "bias", "columns", "products", "flex"]
"""Implementations of causal attention: `kernels/` has a file for each; `auto` chooses the fastest exact one."""

FLEX_WIDTH = 16
"""The smallest head width that FlexAttention supports on a GPU."""

ATTENTION_OPS = {
    torch.ops.higher_order.flex_attention,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def attention_form(device: torch.device, dtype: torch.dtype, d_head: int, dropout: float = 0.0) -> AttentionForm:
    """Return the fastest implementation that is as exact as its type allows (docs/speed.md has the measurements).

    FlexAttention doesn't support dropout, rounds float32 to TF32, and is fast only inside a compiled graph.
    """
    compiling = torch.compiler.is_compiling()
    if device.type == "cpu" and not (dropout or compiling):
        return "products"
    in_graph = device.type == "cuda" and compiling
    if in_graph and not dropout and dtype is not torch.float32 and d_head >= FLEX_WIDTH:
        return "flex"
    return "columns" if dtype is torch.bfloat16 else "bias"


def writes_own_gradient(device: torch.device) -> bool:
    """Whether to use `summed_loss`, which computes its gradient in the forward pass."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def aligns_products(device: torch.device) -> bool:
    """Whether to pad the rows of the output head; an odd number of rows halves the speed of a GPU's kernels."""
    return device.type == "cuda" or torch.compiler.is_compiling()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which matrix products of `x` are computed: autocast's, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def keep_attention() -> Any:
    """Return the contexts for selective activation checkpointing: save attention's output, recompute the rest."""

    def policy(_context: object, op: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]

"""Which form computes attention and loss on a device: the one place where it is chosen.

A compiler gets the plain form, as one graph. A CPU that runs eagerly gets the forms written for it by hand.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

AttentionForm = Literal["auto", "bias", "columns", "products", "flex"]
"""How causal attention is computed: `kernels/` has a file for each; `auto` is the fastest that is exact."""

FLEX_WIDTH = 16
"""The narrowest heads that FlexAttention takes on a GPU."""

ATTENTION_OPS = {
    torch.ops.higher_order.flex_attention,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def attention_form(device: torch.device, dtype: torch.dtype, d_head: int, dropout: float = 0.0) -> AttentionForm:
    """Return the fastest form that is as exact as its type (docs/speed.md has the measurements).

    FlexAttention has no dropout, rounds float32 to TF32, and is fast only inside a compiled graph.
    """
    compiling = torch.compiler.is_compiling()
    if device.type == "cpu" and not (dropout or compiling):
        return "products"
    in_graph = device.type == "cuda" and compiling
    if in_graph and not dropout and dtype is not torch.float32 and d_head >= FLEX_WIDTH:
        return "flex"
    return "columns" if dtype is torch.bfloat16 else "bias"


def writes_own_gradient(device: torch.device) -> bool:
    """Whether a summed loss makes its gradient in its forward pass, and the tied embedding's in one tensor."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def aligns_products(device: torch.device) -> bool:
    """Whether the output head pads its rows: an odd number of them costs a GPU's kernels half of their speed."""
    return device.type == "cuda" or torch.compiler.is_compiling()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type of products of `x`: that of autocast, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def keep_attention() -> Any:
    """Return the contexts of a checkpointed block: its attention is kept, and the rest is computed again."""

    def policy(_context: object, op: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]

"""The two residual blocks: GPT*'s parallel one, with one norm, and GPT-2's sequential one, with two."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from gptstar.model.attention import Attention
from gptstar.model.kernels.choice import keep_attention
from gptstar.model.view import Scope, select_queries

LAYER_NORM_EPS = 1e-5


class MLP(nn.Module):
    """`d_model → d_ff → d_model` with a GELU between."""

    def __init__(self, d_model: int, d_ff: int, *, gelu: Literal["exact", "tanh"]) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.gelu = nn.GELU(approximate="none" if gelu == "exact" else "tanh")
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, position, d_model)` → the same shape."""
        return self.down(self.gelu(self.up(x)))


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward pass; with `activation_checkpointing` it is computed again in the backward pass."""

    @functools.wraps(forward)
    def run(self: Any, x: Tensor, scope: Scope | None = None) -> Tensor:
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return forward(self, x, scope)
        contexts = keep_attention if torch.compiler.is_compiling() else noop_context_fn
        return checkpoint(forward, self, x, scope, use_reentrant=False, context_fn=contexts)

    return run


class ParallelBlock(nn.Module):
    """`x + attn(ln(x)) + mlp(ln(x))`: both branches read the same normalised input.

    Source: Wang and Komatsuzaki, GPT-J-6B, 2021.
    """

    def __init__(self, attention: Attention, mlp: MLP, *, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.attention, self.mlp = attention, mlp
        self.dropout = nn.Dropout(dropout)
        self.activation_checkpointing = False

    @_checkpointed
    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """`(batch, position, d_model)` → the same shape; `scope` as `Attention` takes it."""
        normed = self.norm(x)
        attended = self.dropout(self.attention(normed, scope))
        return select_queries(x, scope) + attended + self.dropout(self.mlp(select_queries(normed, scope)))


class SequentialBlock(nn.Module):
    """`x + attn(ln1(x))`, then `x + mlp(ln2(x))`.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
    """

    def __init__(self, attention: Attention, mlp: MLP, *, d_model: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.mlp_norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.attention, self.mlp = attention, mlp
        self.dropout = nn.Dropout(dropout)
        self.activation_checkpointing = False

    @_checkpointed
    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """`(batch, position, d_model)` → the same shape; `scope` as `Attention` takes it."""
        x = select_queries(x, scope) + self.dropout(self.attention(self.attention_norm(x), scope))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

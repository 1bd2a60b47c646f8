"""Residual blocks by name: GPT*'s parallel block has one LayerNorm, GPT-2's sequential block has two.

To add your own, derive a class from `Block` in a file that you name as a plugin:

    @BLOCKS.register("mine")
    class Mine(Block):
        def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor: ...
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from gptstar.choices import Choices
from gptstar.model.attention import Attention
from gptstar.model.kernels.choice import keep_attention
from gptstar.model.view import Scope, select_queries

if TYPE_CHECKING:
    from gptstar.model.config import GPTConfig

LAYER_NORM_EPS = 1e-5


class MLP(nn.Module):
    """The feed-forward network: `d_model → d_ff → d_model` with a GELU between."""

    def __init__(self, config: "GPTConfig") -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.mlp_width)
        self.gelu = nn.GELU(approximate="none" if config.gelu == "exact" else "tanh")
        self.down = nn.Linear(config.mlp_width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, position, d_model)` to the same shape."""
        return self.down(self.gelu(self.up(x)))


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a block recompute its forward pass during the backward pass if `activation_checkpointing` is set."""

    @functools.wraps(forward)
    def run(self: Any, x: Tensor, scope: Scope | None = None) -> Tensor:
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return forward(self, x, scope)
        contexts = keep_attention if torch.compiler.is_compiling() else noop_context_fn
        return checkpoint(forward, self, x, scope, use_reentrant=False, context_fn=contexts)

    return run


class Block(nn.Module):
    """A residual block: attention, MLP, LayerNorms and dropout.

    Weight decay applies to the weights of `nn.Linear` modules and to nothing else. Unless `initial` says otherwise, a
    parameter starts with ones in a module whose name ends with `norm`, with zeros if its own name ends with `bias`,
    and otherwise from N(0, 0.02).

    Attributes:
        norms: names of the block's LayerNorms, such as `norm`; each becomes an attribute.
        attention: `attention(x, scope)`, `(batch, position, d_model)` → the same shape, or that of the selected tokens.
        mlp: `(batch, position, d_model)` → the same shape.
    """

    norms: ClassVar[tuple[str, ...]] = ("norm",)

    def __init__(self, attention: Attention, mlp: MLP, *, d_model: int, dropout: float) -> None:
        super().__init__()
        for name in self.norms:
            self.add_module(name, nn.LayerNorm(d_model, eps=LAYER_NORM_EPS))
        self.attention, self.mlp = attention, mlp
        self.dropout = nn.Dropout(dropout)
        self.activation_checkpointing = False

    def __init_subclass__(cls) -> None:
        if "forward" in vars(cls):
            cls.forward = _checkpointed(cls.forward)  # type: ignore[method-assign]

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """Map `(batch, position, d_model)` to the same shape, or to the shape of the selected tokens.

        Args:
            scope: what restricts attention; pass it on to `attention`. `select_queries(x, scope)` selects from `x` the
                tokens that attention returns.
        """
        raise NotImplementedError

    @classmethod
    def initial(cls, name: str, shape: torch.Size) -> Tensor | None:
        """Draw a parameter's initial value on the CPU, by its name within the block; None means the model's default."""
        return None

    @classmethod
    @functools.cache
    def n_own_params(cls, d_model: int) -> int:
        """Count the block's parameters outside attention and MLP."""
        none: Any = nn.Identity()
        with torch.device("meta"):
            block = cls(none, none, d_model=d_model, dropout=0.0)
        return sum(parameter.numel() for parameter in block.parameters())


BLOCKS: Choices[Block] = Choices("model.residual", tag="kind", is_word=True)


@BLOCKS.register("parallel")
class ParallelBlock(Block):
    """`x + attn(ln(x)) + mlp(ln(x))`: both branches read the same normalised input.

    Source: Wang and Komatsuzaki, GPT-J-6B, 2021.
    """

    norm: nn.LayerNorm

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """Add both branches to the residual stream at once."""
        normed = self.norm(x)
        attended = self.dropout(self.attention(normed, scope))
        return select_queries(x, scope) + attended + self.dropout(self.mlp(select_queries(normed, scope)))


@BLOCKS.register("sequential")
class SequentialBlock(Block):
    """`x + attn(ln1(x))`, then `x + mlp(ln2(x))`.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
    """

    norms = ("attention_norm", "mlp_norm")
    attention_norm: nn.LayerNorm
    mlp_norm: nn.LayerNorm

    def forward(self, x: Tensor, scope: Scope | None = None) -> Tensor:
        """Add attention to the residual stream, then the MLP of the sum."""
        x = select_queries(x, scope) + self.dropout(self.attention(self.attention_norm(x), scope))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

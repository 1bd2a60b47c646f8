"""Ways to compute our training step that a GPU may run faster. Nothing but `gpu_options.py` uses them."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor import list_mode_options
from torch.nn.functional import linear

from gptstar.model import GPTConfig
from gptstar.model.blocks import ParallelBlock
from gptstar.model.kernels import flex
from gptstar.model.view import Scope, View
from speed.job import Job
from speed.peers import ours
from speed.steps import Precision

Joined = Literal["inputs", "both"]


def training(
    config: GPTConfig,
    *,
    batch: int,
    context: int,
    device: str,
    precision: Precision = "bf16",
    joined: Joined | None = None,
    flex_options: Mapping[str, Any] | None = None,
    compile_mode: str | None = None,
    logits_at_once: int | None = None,
) -> Job:
    """A training step with what is chosen. It changes modules: use a process for each.

    Args:
        joined: products of the parallel block that become one; None leaves them as they are.
        flex_options: FlexAttention's `kernel_options`.
        compile_mode: as `torch.compile` takes it.
        logits_at_once: logits that the loss holds; more are computed in pieces.
    """
    if joined is not None:
        join_products(joined)
    if flex_options is not None:
        tune_flex_attention(flex_options)
    if compile_mode is not None:
        tune_compiler(compile_mode)
    return ours.training(
        config, precision=precision, batch=batch, context=context, device=device, logits_at_once=logits_at_once
    )


def join_products(joined: Joined) -> None:
    """Let every parallel block multiply its input once, by the weights of attention and MLP side by side.

    Args:
        joined: `inputs`, or `both`: the output projections of attention and MLP become one product, too.
    """
    separate = ParallelBlock.forward

    def forward(self: ParallelBlock, x: Tensor, scope: Scope | None = None) -> Tensor:
        """As `ParallelBlock.forward`, without dropout."""
        if isinstance(scope, View) or self.dropout.p:
            return separate(self, x, scope)
        qkv, up, out, down = self.attention.qkv, self.mlp.up, self.attention.out, self.mlp.down
        widths = [*3 * [qkv.out_features // 3], up.out_features]
        weight, bias = (torch.cat(parts) for parts in ((qkv.weight, up.weight), (qkv.bias, up.bias)))
        normed = self.norm(x)
        query, key, value, hidden = torch.split(linear(normed, weight, bias), widths, dim=-1)
        mixed, hidden = self.attention.mixed(normed, query, key, value, scope), self.mlp.gelu(hidden)
        if joined == "inputs":
            return x + out(mixed) + down(hidden)
        weight = torch.cat((out.weight, down.weight), dim=1)
        return x + linear(torch.cat((mixed, hidden), dim=-1), weight, out.bias + down.bias)

    ParallelBlock.forward = forward  # type: ignore[method-assign]


def tune_flex_attention(options: Mapping[str, Any]) -> None:
    """Let FlexAttention's kernels be built with these options."""
    module: Any = flex
    attend, chosen = module.flex_attention, dict(options)

    def tuned(*arguments: Any, **keywords: Any) -> Any:
        return attend(*arguments, **keywords, kernel_options=chosen)

    module.flex_attention = tuned


def tune_compiler(mode: str) -> None:
    """Let `torch.compile` work in a mode, wherever it is called."""
    for name, value in list_mode_options(mode).items():
        setattr(inductor_config, name, value)

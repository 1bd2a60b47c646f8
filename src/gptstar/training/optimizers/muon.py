"""Muon for the matrices of a model and AdamW for all other parameters, in one optimizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor, nn

from gptstar.fields import Before, BelowOne
from gptstar.model import GPT, GPTConfig
from gptstar.training.optimizers.adamw import AdamW
from gptstar.training.optimizers.base import OPTIMIZERS
from gptstar.training.optimizers.newton_schulz import orthogonalised
from gptstar.training.sharding import full_tensor, part_like

FUSED = ".qkv.weight"
"""The parts of the fused projection: queries, keys and values."""


@OPTIMIZERS.register("muon")
@dataclass(frozen=True)
class Muon(AdamW):
    """Muon for the matrices in blocks; AdamW, with the inherited keys, for embeddings, norms and biases.

    Attributes:
        learning_rate: the peak learning rate of both; Muon's updates are scaled so that AdamW's rates suit it.
        momentum: the decay of the gradient's running mean in Muon.
        newton_schulz: the type in which Muon orthogonalises; `auto` is float32 if the run computes in float32.
        iterations: the number of Newton-Schulz iterations. PyTorch uses 5; 4 cost a fifth less, and begin with a matrix
            that is scaled more closely.
        adjust_lr: the size of Muon's updates: `match_rms_adamw` matches AdamW's in every matrix; `original` has the
            published proportions, which halve the update of an MLP's projection from four times the width.
        heads_apart: whether Muon treats each head's queries, keys and values as separate matrices.
    """

    momentum: BelowOne = 0.95
    newton_schulz: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    iterations: Annotated[Literal[4, 5], Before(5)] = 5
    adjust_lr: Annotated[Literal["match_rms_adamw", "original"], Before("match_rms_adamw")] = "match_rms_adamw"
    heads_apart: Annotated[bool, Before(False)] = False

    def resolved(self, precision: str) -> Self:
        """Return the optimizer with the type of `newton_schulz` filled in, for a run that computes in `precision`."""
        if self.newton_schulz != "auto":
            return self
        return replace(self, newton_schulz="float32" if precision == "float32" else "bfloat16")

    def build(self, model: GPT) -> torch.optim.Optimizer:
        """Build one optimizer with Muon's groups before AdamW's."""
        matrices = _matrices(model)
        of_muon = {
            "momentum": self.momentum,
            "newton_schulz": getattr(torch, self.newton_schulz),
            "iterations": self.iterations,
            "adjust_lr": self.adjust_lr,
            "width": model.config.d_model,
            "weight_decay": self.weight_decay,
        }
        groups: list[dict[str, Any]] = []
        for fused, parts in ((False, 1), (True, 3 * model.config.n_heads if self.heads_apart else 3)):
            names = [name for name in matrices if name.endswith(FUSED) == fused]
            groups.append({"params": [matrices[name] for name in names], "parts": parts, **of_muon})
        return MuonAdamW(groups + self.groups(model, without=frozenset(matrices)), fused=True, **self.options)

    def moments(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """Name one moment for every matrix in a block, two for other parameters."""
        return super().moments(model) | dict.fromkeys(_matrices(model), ("momentum_buffer",))

    def state_bytes(self, model: GPTConfig) -> int:
        """Count one float32 moment for matrices in blocks, two for other parameters."""
        return 8 * model.n_params - 4 * matrix_params(model)


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of linear layers by name."""
    return {f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def matrix_params(model: GPTConfig) -> int:
    """Count the parameters of the matrices in blocks."""
    D, A = model.d_model, model.n_heads * model.head_width
    return model.n_layers * (4 * A * D + 2 * model.mlp_width * D)


class MuonAdamW(torch.optim.AdamW):
    """AdamW that applies Muon to parameter groups with a key `parts`.

    Each matrix of such a group consists of `parts` matrices, stacked along its rows, which are orthogonalised
    separately: three for a fused projection of queries, keys and values, or three per head. Of a sharded matrix, each
    rank gathers the update, orthogonalises the full matrix, and keeps its own shard.

    Updates are scaled to the size of AdamW's, an rms of 0.2 per entry, so that learning rate and weight decay mean the
    same for both. With `match_rms_adamw` this holds for each matrix. With `original` it holds for a square matrix of
    `width`; relative to it, matrices with more rows than columns are larger by √(rows / columns), as published.

    For a single matrix, `torch.optim.Muon` computes the same, but its `original` lacks the factor 0.2 √`width`. It
    can't split a fused matrix, compute in float32, or update a sharded matrix.

    Args:
        groups: parameter groups; Muon's have `parts`, `momentum`, `adjust_lr`, `width`, `newton_schulz` (the dtype of
            orthogonalisation) and `iterations`.

    Source: that of `orthogonalised`, with Nesterov momentum and the `original` scale; `match_rms_adamw` is from Liu et
    al., "Muon is scalable for LLM training", 2025, section 2.2.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update matrices by Muon and drop their gradients, so that AdamW updates all other parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "parts" in group:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, group)
                        parameter.grad = None
        super().step()
        return loss

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # AdamW requires it in all states that it loads
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        whole = full_tensor(gradient.lerp(momentum, group["momentum"]))
        matrices = whole.view(group["parts"], -1, whole.shape[1])
        steps = orthogonalised(matrices, group["newton_schulz"], group["iterations"]).flatten(0, 1)
        rows, columns = matrices.shape[1:]
        largest = group["width"] * max(1, rows / columns) if group["adjust_lr"] == "original" else max(rows, columns)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(part_like(parameter, steps), alpha=-group["lr"] * 0.2 * math.sqrt(largest))

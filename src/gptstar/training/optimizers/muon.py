"""Muon on the matrices of a model, AdamW on the rest, as one optimizer."""

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
"""The projections of queries, keys and values, one below the other."""


@OPTIMIZERS.register("muon")
@dataclass(frozen=True)
class Muon(AdamW):
    """Muon on the matrices in blocks, and AdamW, with the inherited keys, on embeddings, norms and biases.

    Attributes:
        learning_rate: the peak of both; it means the same as AdamW's, but for `adjust_lr`.
        momentum: the decay of the gradient's mean in Muon.
        newton_schulz: the type that Muon orthogonalises in; `auto` is float32 where the run computes in float32.
        iterations: of orthogonalising; five are PyTorch's, four begin closer to the end and cost a fifth less.
        adjust_lr: how large Muon's steps are: as AdamW's in every matrix, or in the proportions in which it was
            published, `original`, which are half of that where an MLP of four times the width is projected down.
        heads_apart: Muon treats each head's queries, keys and values as matrices of their own.
    """

    momentum: BelowOne = 0.95
    newton_schulz: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    iterations: Annotated[Literal[4, 5], Before(5)] = 5
    adjust_lr: Annotated[Literal["match_rms_adamw", "original"], Before("match_rms_adamw")] = "match_rms_adamw"
    heads_apart: Annotated[bool, Before(False)] = False

    def resolved(self, precision: str) -> Self:
        """Return the same with the type of `newton_schulz` chosen for a run that computes in `precision`."""
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
        """One of every matrix in a block, two of other parameters."""
        return super().moments(model) | dict.fromkeys(_matrices(model), ("momentum_buffer",))

    def state_bytes(self, model: GPTConfig) -> int:
        """Count one float32 moment of matrices in blocks, two of other parameters."""
        return 8 * model.n_params - 4 * matrix_params(model)


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear layers, by name."""
    return {f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def matrix_params(model: GPTConfig) -> int:
    """Count the parameters of the matrices in blocks."""
    D, A = model.d_model, model.n_heads * model.head_width
    return model.n_layers * (4 * A * D + 2 * model.mlp_width * D)


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with a key `parts` are Muon's.

    Such a group holds matrices that each consist of so many along their rows (three where queries, keys and values are
    projected together, or three a head), and each of these is orthogonalised by itself. Of a matrix in parts over
    ranks, each rank gathers the step, orthogonalises the whole, and keeps its own part.

    Steps are scaled to the size of AdamW's, 0.2 an entry, so that learning rate and weight decay mean the same for
    both: of each matrix with `match_rms_adamw`; with `original` of a square one of `width`, and others are to it as
    Muon was published, larger in their singular values by √(rows / columns) where there are more rows.

    PyTorch's `torch.optim.Muon` is the same for a single matrix (whose `original` lacks the 0.2 √`width`); it can't
    split a fused one, compute in float32, or step one that is in parts.

    Args:
        groups: of parameters; Muon's say `parts`, `momentum`, `adjust_lr` with `width`, and by `newton_schulz` and
            `iterations` how to orthogonalise: the dtype, and how often.

    Source: as `orthogonalised`, with Nesterov's momentum and the `original` scale; `match_rms_adamw` is that of Liu et
    al., "Muon is scalable for LLM training", 2025, section 2.2.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Matrices by Muon, whose gradients are then gone, so that AdamW sees the others' alone."""
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
            state["step"] = torch.zeros(())  # which AdamW looks for in all states that it loads
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

"""Muon on the matrices of a model, AdamW on the rest, as one optimizer."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptstar.training.sharding import full_tensor, part_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
"""Of what was published; with fewer, a matrix is first scaled by a closer bound of its singular values."""


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.bfloat16, iterations: int = ITERATIONS) -> Tensor:
    """Each of some matrices with its singular values brought near 1, to 0.7 to 1.2, by Newton-Schulz iterations.

    None may be above 1 at first, and an iteration multiplies small ones by 3.4, so the smallest come less far. A matrix
    is first divided by its norm, the root of Σ σ², or for fewer iterations by that of its Gram product, the fourth root
    of Σ σ⁴, which is closer to the largest: by n^¼ where n are alike, and not at all where one dominates.

    Args:
        matrices: `(matrix, row, column)`.
        dtype: to compute in; bfloat16 is what GPUs are fast in, and noise in the result does no harm.

    Returns:
        As `matrices`, in `dtype`.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/, whose coefficients these are.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype).contiguous()
    alone = len(x) == 1
    if alone:
        x = x[0]  # a CPU multiplies two matrices faster than two stacks of one, with the same result
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    if iterations < ITERATIONS:
        norm = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
        x, gram = x / norm.sqrt(), gram / norm
    if dtype is torch.float32 and x.shape[-1] >= 2 * x.shape[-2]:
        x = _by_gram(x, gram, iterations)
    else:
        for done in range(iterations):
            gram = x @ x.mT if done else gram
            x = _multiply_add(a, x, 1, _multiply_add(b, gram, c, gram, gram), x)
    x = x.mT if tall else x
    return x[None] if alone else x


def _multiply_add(beta: float, term: Tensor, alpha: float, one: Tensor, two: Tensor) -> Tensor:
    """Of matrices, or of stacks of them: beta · term + alpha · one @ two."""
    add = torch.addmm if term.dim() == 2 else torch.baddbmm
    return add(term, one, two, beta=beta, alpha=alpha)


def _by_gram(x: Tensor, gram: Tensor, iterations: int) -> Tensor:
    """The same iterations on `x @ x.mT` alone, which of wide matrices is small: of four to one, half the work.

    An iteration multiplies `x` by a polynomial of that product, and the next product by its square. bfloat16 would lose
    small singular values in the first product.

    Source: Dao AI Lab, "Gram Newton-Schulz", 2026, https://dao-lab.ai/blog/2026/gram-newton-schulz.
    """
    a, b, c = COEFFICIENTS
    factors: list[Tensor] = []
    while len(factors) < iterations:
        factor = _multiply_add(b, gram, c, gram, gram)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        factors.append(factor)
        if len(factors) < iterations:
            gram = factor @ gram @ factor
    return functools.reduce(torch.matmul, factors) @ x


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

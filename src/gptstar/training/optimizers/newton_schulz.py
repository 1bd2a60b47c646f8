"""Newton-Schulz iterations, which bring the singular values of matrices near 1."""

import functools

import torch
from torch import Tensor

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

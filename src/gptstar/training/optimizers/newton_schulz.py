"""Orthogonalisation by Newton-Schulz iterations, which bring the singular values of matrices near 1."""

import functools

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
"""The published number of iterations; with fewer, matrices are first scaled by a tighter bound."""


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.bfloat16, iterations: int = ITERATIONS) -> Tensor:
    """Bring the singular values of matrices near 1, to between 0.7 and 1.2, by Newton-Schulz iterations.

    Singular values must not exceed 1 at first. An iteration multiplies small ones by 3.4, so the smallest stay below
    0.7. So a matrix is first divided by its norm, the square root of Σ σ². With fewer iterations it is divided by a
    tighter bound of the largest singular value, the fourth root of Σ σ⁴.

    Args:
        matrices: `(matrix, row, column)`.
        dtype: the type to compute in; GPUs are fast in bfloat16, and its rounding does no harm here.
        iterations: the number of iterations.

    Returns:
        The matrices, in the shape of `matrices`, in `dtype`.

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
    """Compute `beta · term + alpha · one @ two` of matrices, or of stacks of them."""
    add = torch.addmm if term.dim() == 2 else torch.baddbmm
    return add(term, one, two, beta=beta, alpha=alpha)


def _by_gram(x: Tensor, gram: Tensor, iterations: int) -> Tensor:
    """Run the iterations on the small product `x @ x.mT` of wide matrices; at a ratio of four to one, half the work.

    An iteration multiplies `x` by a polynomial of that product, and the product by the polynomial's square. The first
    product loses small singular values in bfloat16.

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

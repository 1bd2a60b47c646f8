"""Causal attention with an ALiBi bias of three and of four dimensions: forward and backward, interleaved, this machine.

PyTorch's CPU kernel that keeps no scores takes a bias of four dimensions only. Run: python benchmarks/attention_bias.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gptstar.model.kernels.reference import reference_attention
from gptstar.model.positions import alibi_bias, alibi_slopes

SHAPES = ((4, 8, 512, 128), (32, 4, 128, 64), (1, 8, 1024, 192))  # (batch, head, position, d_head)
ROUNDS = 15


def seconds(action: Callable[[], object]) -> float:
    """One timed call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Print medians, the ratio of the pairs, and the largest error against the reference."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    bias = alibi_bias(torch.tensor(alibi_slopes(shape[1])), range(shape[2]), range(shape[2]))  # (head, query, key)
    forms = {"3 dimensions": bias, "4 dimensions": bias[None]}

    def step(mask: Tensor) -> None:
        scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()

    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(ROUNDS + 2):
        for name, mask in forms.items():
            elapsed = seconds(lambda mask=mask: step(mask))
            if number >= 2:  # the first are warm-up
                times[name].append(elapsed)
    three, four = times.values()
    ratio = statistics.median(b / a for a, b in zip(three, four, strict=True))
    expected = reference_attention(query, key, value, bias)
    error = max(
        (scaled_dot_product_attention(query, key, value, attn_mask=m) - expected).abs().max() for m in forms.values()
    )
    medians = "  ".join(f"{name} {statistics.median(each) * 1e3:6.1f} ms" for name, each in times.items())
    print(f"{shape!s:20} {dtype!s:15} {medians}  4 / 3: {ratio:.2f}  largest error {error.item():.1e}")


if __name__ == "__main__":
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            measure(shape, dtype)

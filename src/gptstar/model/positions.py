"""How a token learns where it is: ALiBi, rotary, learned, or not at all.

ALiBi and rotary are functions of the positions alone, so they hold no parameters and no buffers: nothing of
the context length reaches the state dict.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def alibi_slopes(n_heads: int) -> tuple[float, ...]:
    """The slope of each head: how fast it forgets with distance.

    For a power of two, the geometric sequence from 2^(-8/n) to 2^-8. Otherwise the slopes of the next lower power
    of two, followed by every other slope of the next higher one, as in the paper's own code.

    Source: Press, Smith and Lewis, "Train Short, Test Long", 2022, section 3 and appendix A.
    """
    if n_heads & (n_heads - 1) == 0:
        return tuple(2.0 ** (-8.0 * (head + 1) / n_heads) for head in range(n_heads))
    lower = 2 ** math.floor(math.log2(n_heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[0::2][: n_heads - lower]


def slopes_on(device: torch.device, n_heads: int) -> Tensor:
    """`alibi_slopes` as a tensor `(head,)`, float32.

    A CPU keeps it. Elsewhere it is computed on the device: a graph holds neither a constant nor a copy from the host.
    """
    compute = _kept_slopes if device.type == "cpu" and not torch.compiler.is_compiling() else _slopes
    return compute(device, n_heads)


def _slopes(device: torch.device, n_heads: int) -> Tensor:
    lower = 2 ** math.floor(math.log2(n_heads))
    head = torch.arange(n_heads, device=device, dtype=torch.float64)
    exponents = torch.where(head < lower, 8 * (head + 1) / lower, 4 * (2 * (head - lower) + 1) / lower)
    return torch.exp2(-exponents).float()


@functools.lru_cache(maxsize=64)
def _kept_slopes(device: torch.device, n_heads: int) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode can't be used in training
        return _slopes(device, n_heads)


def alibi_bias(slopes: Tensor, queries: range, keys: range) -> Tensor:
    """What ALiBi adds to the attention scores, the causal mask included.

    Args:
        slopes: `(head,)`, float32.
        queries: positions of the queries.
        keys: positions of the keys.

    Returns:
        `(head, query, key)`, float32: `-slope * distance` where the key is not after the query, `-inf` where it is.
        Always float32: bfloat16 can't tell 256 from 257.
    """
    query = torch.arange(queries.start, queries.stop, device=slopes.device)
    key = torch.arange(keys.start, keys.stop, device=slopes.device)
    distance = query[:, None] - key[None, :]  # (query, key)
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill_(distance < 0, -torch.inf)  # in place: it is the largest tensor of a long context


ROTARY_BASE = 10_000.0
"""Of the wavelengths of rotary positions, as RoFormer's."""


def rotary_frequencies(d_head: int, base: float = ROTARY_BASE, device: torch.device | None = None) -> Tensor:
    """Angles that each pair of features turns by from one position to the next: `(d_head / 2,)`, float32.

    Source: Su et al., "RoFormer", 2021, equation 15.
    """
    return base ** (-torch.arange(0, d_head, 2, device=device) / d_head)


def ntk_frequencies(frequencies: Tensor, factor: float) -> Tensor:
    """Frequencies for a context `factor` times that of training: the slowest `factor` times slower, the fastest as is.

    The same as a base of `base * factor^(d / (d - 2))`.

    Args:
        frequencies: `(d_head / 2,)`, of training.

    Source: bloc97, "NTK-Aware Scaled RoPE", r/LocalLLaMA, 2023; Peng et al., "YaRN", 2023, equation 16.
    """
    pairs = len(frequencies)
    share = torch.arange(pairs, device=frequencies.device) / max(1, pairs - 1)  # 0 at the fastest, 1 at the slowest
    return frequencies * factor**-share


def yarn_frequencies(
    frequencies: Tensor, factor: float, trained_at: int, *, base: float = ROTARY_BASE, slow: float = 1, fast: float = 32
) -> Tensor:
    """Frequencies for a context `factor` times that of training, by how often each pair turned within training's.

    Pairs that turned more than `fast` times stay, those that turned less than `slow` times become `factor` times
    slower, and between them a ramp leads from one to the other. It runs over the pairs' numbers, as in the authors'
    code; in the paper it runs over turns.

    Args:
        frequencies: `(d_head / 2,)`, of training, with `base`.
        trained_at: the context length in training.

    Source: Peng et al., "YaRN", 2023, section 3.2, and the authors' code.
    """
    d_head = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        return d_head * math.log(trained_at / (times * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair_that_turns(fast)), 0)
    last: float = min(math.ceil(pair_that_turns(slow)), d_head - 1)
    if last == first:
        last += 0.001  # a ramp is no step
    ramp = ((torch.arange(len(frequencies), device=frequencies.device) - first) / (last - first)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / factor * ramp


def yarn_attention_factor(factor: float) -> float:
    """What YaRN multiplies turned queries and keys by: the square root of one over its temperature.

    Source: Peng et al., "YaRN", 2023, equation 22.
    """
    return 0.1 * math.log(factor) + 1.0


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary positions are stretched to read further than in training.

    Attributes:
        method: `ntk` or `yarn`.
        factor: the context length over that of training, 1 or more; 1 changes nothing.
        trained_at: the context length in training.
    """

    method: Literal["ntk", "yarn"]
    factor: float
    trained_at: int


def rotary_angles(positions: Tensor, d_head: int, scaling: RotaryScaling | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate`.

    Args:
        positions: `(…, position)`, int64.
        scaling: where more is read than in training.

    Returns:
        Two tensors `(…, position, d_head / 2)`, float32.
    """
    frequencies, size = rotary_frequencies(d_head, device=positions.device), 1.0
    if scaling is not None and scaling.method == "ntk":
        frequencies = ntk_frequencies(frequencies, scaling.factor)
    elif scaling is not None:
        frequencies = yarn_frequencies(frequencies, scaling.factor, scaling.trained_at)
        size = yarn_attention_factor(scaling.factor)
    angles = positions[..., None] * frequencies
    return (angles.cos(), angles.sin()) if size == 1.0 else (angles.cos() * size, angles.sin() * size)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each pair of features `(i, i + d_head / 2)` by its position's angle (GPT-NeoX's pairing).

    Args:
        x: `(batch, head, position, d_head)`.
        cosines: `(position, d_head / 2)`, from `rotary_angles`, or with axes of batch and head before; `sines` too.

    Returns:
        The shape and type of `x`; computed in float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.type_as(x)

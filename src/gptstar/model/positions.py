"""How a token learns where it is: ALiBi, rotary, learned, or not at all.

ALiBi and rotary are functions of the positions alone, so they hold no parameters and no buffers: nothing of
the context length reaches the state dict.
"""

import math

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
    return bias.masked_fill(distance < 0, -torch.inf)


def rotary_angles(positions: Tensor, d_head: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate`.

    Args:
        positions: `(…, position)`, int64.

    Returns:
        Two tensors `(…, position, d_head / 2)`, float32.

    Source: Su et al., "RoFormer", 2021, equation 15.
    """
    frequencies = base ** (-torch.arange(0, d_head, 2, device=positions.device) / d_head)  # (d_head / 2,)
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


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

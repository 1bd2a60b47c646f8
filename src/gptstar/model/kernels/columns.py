"""A bias that is linear in distance, as columns of the keys: a kernel for plain causal attention adds it.

A softmax ignores what is the same for all keys of a query, so `slope * key` may stand for `-slope * (query - key)`:
a product of the head's slope and the key's position, which are further features of queries and keys.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

TERMS = 3
"""Numbers of bfloat16 that a slope is split into: 3 x 8 bits are float32's 24."""

LONGEST = 2**16
"""Positions that two digits of bfloat16 can count: each digit has 256 values."""

COLUMNS = 8
"""Features beside a head's own: two digits of the position for each term, and zeros up to a multiple of 8."""


def columns_attention(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal attention with slopes through the kernel for plain causal attention; memory grows with the length alone.

    Scores are as large as `slope * position`, so they round more than with a bias: by about 2^-24 of that, 5e-4 at
    position 8,192 under the steepest slope of eight heads. In bfloat16 this is far below what its own numbers round.
    It takes float32 or bfloat16, and at most `LONGEST` positions.
    """
    batch, n_heads, n_positions, d_head = query.shape
    of_query = query_columns(slopes, d_head, query.dtype)[None, :, None].expand(batch, -1, n_positions, -1)
    of_key = key_columns(n_positions, key.dtype, key.device).expand(batch, n_heads, -1, -1)
    with torch.autocast(query.device.type, enabled=False):
        mixed = scaled_dot_product_attention(
            torch.cat((query, of_query), dim=-1),
            torch.cat((key, of_key), dim=-1),
            pad(value, (0, COLUMNS)),  # the kernels want values as wide as queries
            dropout_p=dropout,
            is_causal=True,
            scale=1 / math.sqrt(d_head),
        )
    return mixed[..., :d_head]


def query_columns(slopes: Tensor, d_head: int, dtype: torch.dtype) -> Tensor:
    """`slope * sqrt(d_head)`, which attention divides by that root again: `(head, COLUMNS)`.

    The root and the slopes of other than a power of two heads are irrational, and one bfloat16 holds 8 bits: the rest
    of each term is the next one.
    """
    rest = slopes.float() * math.sqrt(d_head)
    terms = []
    for _ in range(TERMS):
        term = rest.to(dtype)
        terms += [term, term]  # one for each digit of the position
        rest = rest - term.float()
    return pad(torch.stack(terms, dim=-1), (0, COLUMNS - 2 * TERMS))


def key_columns(n_positions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Positions in two digits that bfloat16 holds: `(position, COLUMNS)`."""
    positions = torch.arange(n_positions, device=device)
    low = positions % 256
    digits = torch.stack((positions - low, low), dim=-1).to(dtype)
    return pad(digits.repeat(1, TERMS), (0, COLUMNS - 2 * TERMS))

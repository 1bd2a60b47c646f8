"""ALiBi as extra features of queries and keys, so that a kernel for plain causal attention computes its bias.

A softmax ignores a term that is the same for all keys of a query, so `slope * key` can replace `-slope * (query -
key)`. That is a product: the slope becomes a feature of the query, and the position a feature of the key.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

TERMS = 3
"""bfloat16 numbers into which a slope is split: 3 x 8 bits equal float32's 24."""

LONGEST = 2**16
"""The most positions: two bfloat16 digits of 256 values each can count so far."""

COLUMNS = 8
"""Extra features per head: two digits of the position for each term, and zeros up to a multiple of 8."""


def columns_attention(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, dropout: float = 0.0) -> Tensor:
    """Compute causal attention with slopes by the kernel for plain causal attention; memory grows linearly.

    Scores are as large as `slope * position`, so their rounding error exceeds that of an explicit bias: about 2^-24 of
    the score, 5e-4 at position 8,192 with the steepest slope of eight heads. This is far below bfloat16's own rounding.
    Inputs are float32 or bfloat16, with at most `LONGEST` positions.
    """
    batch, n_heads, n_positions, d_head = query.shape
    of_query = query_columns(slopes, d_head, query.dtype)[None, :, None].expand(batch, -1, n_positions, -1)
    of_key = key_columns(n_positions, key.dtype, key.device).expand(batch, n_heads, -1, -1)
    with torch.autocast(query.device.type, enabled=False):
        mixed = scaled_dot_product_attention(
            torch.cat((query, of_query), dim=-1),
            torch.cat((key, of_key), dim=-1),
            pad(value, (0, COLUMNS)),  # the kernels require values as wide as queries
            dropout_p=dropout,
            is_causal=True,
            scale=1 / math.sqrt(d_head),
        )
    return mixed[..., :d_head]


def query_columns(slopes: Tensor, d_head: int, dtype: torch.dtype) -> Tensor:
    """Return the features of queries, `slope * sqrt(d_head)`, as sums of terms: `(head, COLUMNS)`.

    Attention divides by `sqrt(d_head)` again. A bfloat16 number holds 8 bits, so each term holds the rounding error of
    the one before.
    """
    rest = slopes.float() * math.sqrt(d_head)
    terms = []
    for _ in range(TERMS):
        term = rest.to(dtype)
        terms += [term, term]  # once for each digit of the position
        rest = rest - term.float()
    return pad(torch.stack(terms, dim=-1), (0, COLUMNS - 2 * TERMS))


def key_columns(n_positions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the features of keys: positions as two digits that bfloat16 holds exactly: `(position, COLUMNS)`."""
    positions = torch.arange(n_positions, device=device)
    low = positions % 256
    digits = torch.stack((positions - low, low), dim=-1).to(dtype)
    return pad(digits.repeat(1, TERMS), (0, COLUMNS - 2 * TERMS))

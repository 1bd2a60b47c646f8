"""The definition of attention."""

import math

import torch
from torch import Tensor


def reference_attention(query: Tensor, key: Tensor, value: Tensor, attention_bias: Tensor) -> Tensor:
    """The attention that every fast form has to agree with, in float32.

    Args:
        query: `(batch, head, query, d_head)`, like the result; `key` and `value` are `(batch, head, key, d_head)`.
        attention_bias: `(head, query, key)`, added to the scores; `-inf` forbids.

    Source: Vaswani et al., "Attention Is All You Need", 2017, equation 1.
    """
    scores = query.float() @ key.float().transpose(-2, -1) / math.sqrt(query.shape[-1])
    return torch.softmax(scores + attention_bias, dim=-1) @ value.float()

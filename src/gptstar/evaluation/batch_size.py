"""How much to read at once: what a CPU reads fastest, and what a GPU's memory holds."""

from collections.abc import Sequence
from typing import NamedTuple

from gptstar.inference.memory import MASK_CELL, activation_bytes, cache_bytes, usable_bytes
from gptstar.model import GPT, GPTConfig

FEWEST_TOKENS, MOST_TOKENS = 1024, 2**16
"""Limits on a GPU. By arithmetic 65,536 tokens fill one; the limit leaves several batches for ranks to share."""

LOGIT = 16
"""Bytes of a logit: in the model's type, in float32, and two temporaries of its normalisation."""

VALUE = 4
"""Bytes of a value: that of float32, whatever autocast computes in."""


class BatchSize(NamedTuple):
    """The most that a device reads at once.

    Attributes:
        tokens: padding included.
        mask_cells: of attention masks, `row * head * query * key`.
        logits: `token * n_vocab`.
    """

    tokens: int
    mask_cells: int
    logits: int


def batch_size_for(model: GPT, *, cpu_tokens: int) -> BatchSize:
    """Return the batch size for a model on its device, where a CPU reads `cpu_tokens` at once fastest."""
    device = model.token_embedding.weight.device
    if device.type != "cuda":
        return BatchSize(cpu_tokens, mask_cells=2**26, logits=2**25)
    return batch_size_within(usable_bytes(device), model.config)


def batch_size_within(room: int, config: GPTConfig) -> BatchSize:
    """Return the batch size that fits `room` bytes of a GPU.

    Half of them are for tokens, at their activations and their part of a KV cache each, in float32; a quarter is for
    masks, and a quarter for logits. Tokens are a power of two, so that nearly the same memory gives the same batches.
    """
    token_bytes = activation_bytes(config, VALUE) + cache_bytes(config, VALUE)
    fitting = room // 2 // token_bytes
    tokens = 1 << max(fitting, 1).bit_length() - 1
    tokens = min(max(tokens, FEWEST_TOKENS), MOST_TOKENS)
    return BatchSize(tokens, mask_cells=room // 4 // MASK_CELL, logits=room // 4 // LOGIT)


def smallest(sizes: Sequence[BatchSize]) -> BatchSize:
    """Return the batch size that all of some ranks can read: they must form the same batches."""
    return BatchSize(*map(min, zip(*sizes, strict=True)))

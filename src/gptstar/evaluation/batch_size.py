"""The batch size of an evaluation: the fastest on a CPU, or the largest that fits into a GPU's memory."""

from collections.abc import Sequence
from typing import NamedTuple

from gptstar.inference.memory import MASK_CELL, activation_bytes, cache_bytes, usable_bytes
from gptstar.model import GPT, GPTConfig

FEWEST_TOKENS, MOST_TOKENS = 1024, 2**16
"""The smallest and the largest batch on a GPU, in tokens. By arithmetic 65,536 tokens keep a GPU busy; a higher limit
would leave too few batches for the ranks to share."""

LOGIT = 16
"""Bytes per logit: in the model's type, in float32, and two temporaries of its normalisation."""

VALUE = 4
"""Bytes per value: those of float32, even under autocast."""


class BatchSize(NamedTuple):
    """The limits of a batch on a device.

    Attributes:
        tokens: the most tokens, including padding.
        mask_cells: the most entries of attention masks, `row * head * query * key`.
        logits: the most logits, `token * n_vocab`.
    """

    tokens: int
    mask_cells: int
    logits: int


def batch_size_for(model: GPT, *, cpu_tokens: int) -> BatchSize:
    """Return the batch size for a model on its device; on a CPU it is `cpu_tokens`."""
    device = model.token_embedding.weight.device
    if device.type != "cuda":
        return BatchSize(cpu_tokens, mask_cells=2**26, logits=2**25)
    return batch_size_within(usable_bytes(device), model.config)


def batch_size_within(room: int, config: GPTConfig) -> BatchSize:
    """Return the batch size that fits into `room` bytes of a GPU.

    Half of the memory is for tokens, with their activations and their part of a KV cache in float32, a quarter for
    masks, and a quarter for logits. The number of tokens is a power of two, so that slightly different amounts of
    memory give the same batches.
    """
    token_bytes = activation_bytes(config, VALUE) + cache_bytes(config, VALUE)
    fitting = room // 2 // token_bytes
    tokens = 1 << max(fitting, 1).bit_length() - 1
    tokens = min(max(tokens, FEWEST_TOKENS), MOST_TOKENS)
    return BatchSize(tokens, mask_cells=room // 4 // MASK_CELL, logits=room // 4 // LOGIT)


def smallest(sizes: Sequence[BatchSize]) -> BatchSize:
    """Return the batch size that fits on all ranks, which must form the same batches."""
    return BatchSize(*map(min, zip(*sizes, strict=True)))

"""Refuse texts that would take too much memory or time, before preparing anything for them."""

import torch

from gptstar.errors import ConfigError
from gptstar.inference.memory import cache_bytes, machine_bytes
from gptstar.model import GPT

TEXT = 2000
"""Least bytes that Python needs per text."""

SCORE = 100
"""Operations per attention score besides its product: softmax and mask."""

PER_SECOND = {"cpu": 1e11, "cuda": 1e14}
"""Approximate operations per second of a device."""

MOST_HOURS = 1
"""Most time for reading the prompts, before which no output can appear."""


def check_size(model: GPT, *, n_texts: int, longest: int, n_new: int) -> None:
    """Check that the texts fit a device, and that their prompts can be read in time.

    Args:
        longest: number of tokens of the longest prompt.
        n_new: number of tokens to generate for each text.

    Raises:
        ConfigError: the texts need too much; the message states what they need and what is available.
    """
    config, weight = model.config, model.token_embedding.weight
    of_token = cache_bytes(config, max(weight.itemsize, 4) if weight.device.type == "cpu" else weight.itemsize)
    needed = n_texts * (TEXT + (longest + n_new) * of_token + 8 * n_new + 4 * config.n_vocab)
    on_gpu = weight.device.type == "cuda"
    there = torch.cuda.mem_get_info(weight.device)[1] if on_gpu else machine_bytes()
    texts = f"{n_texts:,} text{'s' * (n_texts > 1)} of {longest:,} tokens and {n_new:,} new ones"
    if needed > there:
        raise ConfigError(
            f"{texts} would take {needed / 1e9:,.0f} GB of memory at least, but the device has {there / 1e9:,.0f} GB: "
            "generate fewer texts or tokens (-n, --tokens), or shorten the prompt"
        )
    scores = config.n_layers * config.n_heads * longest * (4 * config.head_width + SCORE) // 2
    work = n_texts * longest * (2 * config.n_params + scores)
    hours = work / PER_SECOND.get(weight.device.type, 1e11) / 3600
    if hours > MOST_HOURS:
        raise ConfigError(
            f"{texts} would take {work:.1e} operations before the first new token, about {hours:,.0f} hours: shorten "
            "the prompt, or generate fewer texts (-n)"
        )

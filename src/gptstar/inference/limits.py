"""What texts would take, which is said before anything is prepared for them."""

import torch

from gptstar.errors import ConfigError
from gptstar.inference.memory import cache_bytes, machine_bytes
from gptstar.model import GPT

TEXT = 2000
"""Bytes that Python holds for each text, at least."""

SCORE = 100
"""Operations that an attention score takes beside its product: a softmax, a mask."""

PER_SECOND = {"cpu": 1e11, "cuda": 1e14}
"""Operations a second of a device, roughly."""

MOST_HOURS = 1
"""Time to read prompts in, at most: nothing can be shown till then."""


def check_size(model: GPT, *, n_texts: int, longest: int, n_new: int) -> None:
    """See that a device can hold texts, and read their prompts in time.

    Args:
        longest: tokens of the longest prompt.
        n_new: tokens to add to each.

    Raises:
        ConfigError: it can't; says what they take, and what there is.
    """
    config, weight = model.config, model.token_embedding.weight
    of_token = cache_bytes(config, max(weight.itemsize, 4) if weight.device.type == "cpu" else weight.itemsize)
    needed = n_texts * (TEXT + (longest + n_new) * of_token + 8 * n_new + 4 * config.n_vocab)
    on_gpu = weight.device.type == "cuda"
    there = torch.cuda.mem_get_info(weight.device)[1] if on_gpu else machine_bytes()
    texts = f"{n_texts:,} text{'s' * (n_texts > 1)} of {longest:,} tokens and {n_new:,} new ones"
    if needed > there:
        raise ConfigError(
            f"{texts} would take {needed / 1e9:,.0f} GB of memory at least, and there are {there / 1e9:,.0f} GB: ask "
            "for fewer texts or tokens (-n, --tokens), or shorten the prompt"
        )
    scores = config.n_layers * config.n_heads * longest * (4 * config.head_width + SCORE) // 2
    work = n_texts * longest * (2 * config.n_params + scores)
    hours = work / PER_SECOND.get(weight.device.type, 1e11) / 3600
    if hours > MOST_HOURS:
        raise ConfigError(
            f"{texts} would take {work:.1e} operations before the first new one, {hours:,.0f} hours or so: shorten the "
            "prompt, or ask for fewer texts (-n)"
        )

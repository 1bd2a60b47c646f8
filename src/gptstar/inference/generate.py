"""Text from a prompt, one token at a time."""

import torch
from torch import Tensor

from gptstar.errors import ConfigError
from gptstar.model import GPT


def next_token(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Draw from the `top_k` likeliest tokens, at a temperature; temperature 0 takes the likeliest.

    Args:
        logits: `(batch, n_vocab)`.

    Returns:
        `(batch, 1)`, int64.
    """
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]  # (batch, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)


@torch.inference_mode()
def generate(
    model: GPT,
    tokens: Tensor,
    n_new: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    end_of_text: int | None = None,
) -> Tensor:
    """Continue a prompt; with ALiBi the result may be longer than the training context.

    Args:
        tokens: `(1, position)`, int64, at least one.
        n_new: tokens to add at most; generation ends early at `end_of_text`, which is not returned.

    Returns:
        `(1, position + at most n_new)`, int64.

    Raises:
        ConfigError: a sampling setting out of range.
    """
    if not (temperature == 0.0 or 0.001 <= temperature <= 1000):
        raise ConfigError(f"temperature={temperature} is neither 0 (the likeliest) nor between 0.001 and 1000")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k={top_k} is below 1")
    if n_new < 0 or not 0 <= seed < 2**63:
        raise ConfigError(f"n_new={n_new}, seed={seed}: neither may be negative, nor the seed beyond 2**63")
    generator = torch.Generator(tokens.device).manual_seed(seed)
    for _ in range(n_new):
        drawn = next_token(model(tokens)[:, -1], temperature=temperature, top_k=top_k, generator=generator)
        if drawn.item() == end_of_text:
            break
        tokens = torch.cat((tokens, drawn), dim=1)
    return tokens

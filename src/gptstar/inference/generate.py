"""Texts from prompts."""

from collections.abc import Sequence

from torch import Tensor

from gptstar.inference.decode import Tokens, decode
from gptstar.inference.sampling import Sampling
from gptstar.model import GPT


def generate(
    model: GPT,
    prompts: Sequence[Tokens] | Tensor,
    n_new: int,
    *,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    end_of_text: int | None = None,
) -> list[list[int]]:
    """Continue prompts of any lengths; with ALiBi a text may become longer than the training context.

    Args:
        model: in eval mode.
        prompts: tokens, at least one each.
        n_new: tokens to add at most; a text ends early at `end_of_text`, which is not returned.
        temperature, top_k, seed: as `Sampling`; a text's draws depend on its place, not on the others.

    Returns:
        Each prompt with its continuation.

    Raises:
        ConfigError: a sampling setting out of range, a prompt without tokens, or more tokens than learned positions
            have a capacity for.
    """
    sampling = Sampling(temperature, top_k, seed)
    continuations = decode(model, prompts, n_new, sampling=sampling, ended=lambda tokens: tokens[-1] == end_of_text)
    texts = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        ends = bool(continuation) and continuation[-1] == end_of_text
        texts.append([*map(int, prompt), *(continuation[:-1] if ends else continuation)])
    return texts

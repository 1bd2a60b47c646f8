"""Which token comes next: the likeliest, or one drawn with numbers that belong to a text, not to its batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptstar.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token, and nothing is drawn.
        top_k: draw from so many of the likeliest; from all where it is None.
        seed: of the draws.
    """

    temperature: float = 0.8
    top_k: int | None = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0.0 or 0.001 <= self.temperature <= 1000):
            raise ConfigError(f"temperature={self.temperature} is neither 0 (the likeliest) nor between 0.001 and 1000")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} is below 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} is not between 0 and 2**63")

    def uniforms(self, numbers: Sequence[int], n_new: int) -> Tensor:
        """The numbers in [0, 1) that texts are drawn with: a function of the seed and the text's own number.

        Returns:
            `(text, n_new)`, float64; `(text, 0)` where nothing is drawn.
        """
        n_drawn = n_new if self.temperature else 0
        drawn = [np.random.default_rng([self.seed, number]).random(n_drawn) for number in numbers]
        return torch.from_numpy(np.stack(drawn))


GREEDY = Sampling(temperature=0.0)


def next_token(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Draw a token of each row, by inverting the cumulative distribution.

    Args:
        logits: `(row, n_vocab)`.
        uniform: `(row,)`, float64, in [0, 1); not looked at where the likeliest is taken.

    Returns:
        `(row,)`, int64.
    """
    logits, tokens = logits.float(), None  # of bfloat16 a CPU finds the largest ten times slower
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits, tokens = logits.topk(sampling.top_k)  # (row, top_k) each
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # What has no probability adds nothing, and is never the first to exceed.
    places = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    places = places.clamp_(max=cumulative.shape[1] - 1)  # (row, 1); a product may round up to the whole
    return (places if tokens is None else tokens.gather(1, places))[:, 0]

"""Choose the next token: the likeliest, or one sampled with random numbers that don't depend on the batch.

Filters map logits `(row, n_vocab)` to logits with `-inf` for excluded tokens. They equal Hugging Face's
`LogitsProcessor`s, including the treatment of ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptstar.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """A sampling method. `Sampling()` samples from all tokens at a temperature of 0.8.

    The filters are applied in the order of this list, as in Hugging Face's `generate`.

    Attributes:
        repetition_penalty: above 1, makes tokens that the text already contains less likely; 1 changes nothing.
        temperature: divides the logits; 0 takes the likeliest token without sampling or further filters.
        top_k: sample from this many of the likeliest tokens.
        top_p: sample from the fewest likeliest tokens whose probabilities sum to this (nucleus).
        typical_p: sample from the tokens with the most typical information whose probabilities sum to this.
        seed: seed of the random numbers.
    """

    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        optional = {"top_k", "top_p", "typical_p"}
        given = {name: value for name, value in vars(self).items() if value is not None or name not in optional}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{name}={value!r} is not a number")
        if not (self.temperature == 0.0 or 0.001 <= self.temperature <= 1000):
            raise ConfigError(f"temperature={self.temperature} is not 0 (greedy) or between 0.001 and 1000")
        if self.top_k is not None and not (self.top_k >= 1 and float(self.top_k).is_integer()):
            raise ConfigError(f"top_k={self.top_k} is not a whole number of 1 or more")
        for name in ("top_p", "typical_p"):
            if not 0.0 < given.get(name, 1.0) <= 1.0:
                raise ConfigError(f"{name}={given[name]} is not in (0, 1]")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ConfigError(f"repetition_penalty={self.repetition_penalty} is not between 0.01 and 100")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} is not a whole number between 0 and 2**63")

    def uniforms(self, numbers: Sequence[int], n_new: int) -> Tensor:
        """Draw the random numbers in [0, 1) for each text's tokens; they depend on the seed and the text's number only.

        The shape is `(text, n_new)`, float64, or `(text, 0)` if the temperature is 0.
        """
        n_drawn = n_new if self.temperature else 0
        drawn = [np.random.default_rng([self.seed, number]).random(n_drawn) for number in numbers]
        return torch.from_numpy(np.stack(drawn))

    def filtered(self, logits: Tensor, previous: Tensor | None = None) -> Tensor:
        """Apply all filters: return logits to sample from, `-inf` for excluded tokens.

        Args:
            logits: `(row, n_vocab)`, float32.
            previous: `(row, n_vocab)`, bool: the tokens that each text contains; needed for a repetition penalty.
        """
        if self.repetition_penalty != 1.0:
            assert previous is not None
            logits = penalise(logits, previous, self.repetition_penalty)
        if self.temperature == 0.0:
            return logits
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, int(self.top_k))
        if self.top_p is not None and self.top_p < 1.0:
            logits = keep_nucleus(logits, self.top_p)
        if self.typical_p is not None and self.typical_p < 1.0:
            logits = keep_typical(logits, self.typical_p)
        return logits


GREEDY = Sampling(temperature=0.0)
USUAL = Sampling(top_k=50)
"""The default sampling of `generate`."""


def next_token(logits: Tensor, uniform: Tensor, sampling: Sampling, previous: Tensor | None = None) -> Tensor:
    """Choose a token for each row, `(row,)`, int64, by inverting the cumulative distribution.

    Args:
        logits: `(row, n_vocab)`.
        uniform: `(row,)`, float64, in [0, 1); unused if the temperature is 0.
        previous: as in `Sampling.filtered`.
    """
    logits = sampling.filtered(logits.float(), previous)  # finding the largest bfloat16 is ten times slower on a CPU
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # A token of probability 0 adds nothing, so it is never chosen.
    places = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    # The product may round up to the total: then take the last token with any probability.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1)
    return torch.minimum(places, last)


def penalise(logits: Tensor, previous: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of previous tokens and multiply negative ones (Keskar et al., "CTRL", 2019)."""
    return torch.where(previous, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and ties (Fan et al., "Hierarchical Neural Story Generation", 2018)."""
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_nucleus(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """
    ascending, order = logits.sort(dim=-1)
    left_out = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - p
    left_out[:, -1] = False
    return logits.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose information is nearest to the entropy, until their probabilities sum to p.

    Source: Meister et al., "Locally Typical Sampling", 2023.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(dim=-1, keepdim=True)  # nansum skips 0 * inf
    distance = (-log_probabilities - entropy).abs()
    ascending, order = distance.sort(dim=-1)
    cumulative = torch.softmax(logits.gather(1, order), dim=-1).cumsum(dim=-1)
    last = (cumulative < p).sum(dim=-1, keepdim=True).clamp_(max=logits.shape[-1] - 1)
    left_out = ascending > ascending.gather(1, last)
    return logits.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)

"""Which token comes next: the likeliest, or one drawn with numbers that belong to a text, not to its batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from gptstar.errors import ConfigError
from gptstar.inference.filters import keep_nucleus, keep_top_k, keep_typical, penalise


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: by `Sampling()` from all, at a temperature of 0.8.

    What else is given applies in the order of this list, as in Hugging Face's `generate`.

    Attributes:
        repetition_penalty: what a text has had becomes so much less likely; 1 changes nothing (Keskar et al., 2019).
        temperature: 0 takes the likeliest token, nothing is drawn, and what follows does not apply.
        top_k: draw from so many of the likeliest.
        top_p: draw from the fewest likeliest that have this probability together (nucleus; Holtzman et al., 2020).
        typical_p: draw from those whose information is nearest to the expected, which have this probability together
            (Meister et al., 2023).
        seed: of the draws.
    """

    temperature: float = 0.8
    top_k: int | None = None
    seed: int = 0
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{field.name}={value!r} is no number")
        if not (self.temperature == 0.0 or 0.001 <= self.temperature <= 1000):
            raise ConfigError(f"temperature={self.temperature} is neither 0 (the likeliest) nor between 0.001 and 1000")
        if self.top_k is not None and (
            not math.isfinite(self.top_k) or self.top_k < 1 or self.top_k != int(self.top_k)
        ):
            raise ConfigError(f"top_k={self.top_k} is no whole number of 1 or more")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ConfigError(f"{name}={value} is not in (0, 1]")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ConfigError(f"repetition_penalty={self.repetition_penalty} is not between 0.01 and 100")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} is no whole number between 0 and 2**63")

    def uniforms(self, numbers: Sequence[int], n_new: int) -> Tensor:
        """The numbers in [0, 1) that texts are drawn with: a function of the seed and the text's own number.

        Returns:
            `(text, n_new)`, float64; `(text, 0)` where nothing is drawn.
        """
        n_drawn = n_new if self.temperature else 0
        drawn = [np.random.default_rng([self.seed, number]).random(n_drawn) for number in numbers]
        return torch.from_numpy(np.stack(drawn))

    def filtered(self, logits: Tensor, had: Tensor | None = None) -> Tensor:
        """What is drawn from: logits of the same probabilities, `-inf` where a token is left out.

        Args:
            logits: `(row, n_vocab)`, float32.
            had: `(row, n_vocab)`, bool: what each text has had; needed for a repetition penalty.
        """
        if self.repetition_penalty != 1.0:
            assert had is not None
            logits = penalise(logits, had, self.repetition_penalty)
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
"""What is taken where nothing is asked for."""


def next_token(logits: Tensor, uniform: Tensor, sampling: Sampling, had: Tensor | None = None) -> Tensor:
    """Draw a token of each row, by inverting the cumulative distribution.

    Args:
        logits: `(row, n_vocab)`.
        uniform: `(row,)`, float64, in [0, 1); not looked at where the likeliest is taken.
        had: as `Sampling.filtered`.

    Returns:
        `(row,)`, int64.
    """
    logits = sampling.filtered(logits.float(), had)  # of bfloat16 a CPU finds the largest ten times slower
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # What has no probability adds nothing, and is never the first to exceed.
    places = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    # A product may round up to the whole: then the last that has any.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1)
    return torch.minimum(places, last)

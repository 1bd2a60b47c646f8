"""The settings of a study of recall."""

from dataclasses import dataclass
from typing import Literal

from gptstar.data.text.recall import N_KEYS
from gptstar.errors import ConfigError
from gptstar.fields import Count, Seed32, Share, check_ranges

LEARNED = 0.95
"""The least accuracy at the training context of a model that has learned to recall."""


def least_length(n_pairs: int) -> int:
    """Return the length of a text without filler, in tokens: end-of-text, `n_pairs` pairs, and a query."""
    return 1 + 2 * n_pairs + 2


@dataclass(frozen=True)
class RecallConfig:
    """Settings of a study of recall.

    Attributes:
        study: the kind of evaluation, set by `evaluation=recall`.
        multiples: the lengths of the texts, as multiples of the training context, which itself is always included.
        depths: the places of the queried pair: 0 is at the beginning of a text, 1 just before the query.
        items: the number of texts at each length and depth.
        pairs: the number of pairs in a text, the same at every length, so that lengths differ in distance only.
        loads: numbers of pairs to try at one length, the shortest that holds them all, so that loads differ in pairs
            only. Those that fit no length, or for which the tokenizer has too few words, are left out.
        passkey: also ask for a passkey, if the model's tokenizer has English words.
        trained_at: the training context of a checkpoint that does not know it.
        dtype: the type of matrix products.
        batch_tokens: tokens read at once; by default 8,192 on a CPU and 65,536 on a GPU.
        seed: the seed of the texts.
    """

    study: Literal["recall"] = "recall"
    multiples: tuple[Count, ...] = (1, 2, 4, 8, 16)
    depths: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    items: Count = 200
    pairs: Count = 4
    loads: tuple[Count, ...] = (4, 8, 16, 32)
    passkey: bool = True
    trained_at: Count | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_tokens: Count | None = None
    seed: Seed32 = 1234

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation.")
        for name in ("multiples", "depths", "loads"):
            values = getattr(self, name)
            if not values and name != "loads":
                raise ConfigError(f"evaluation.{name} is empty: name some")
            if len(set(values)) < len(values):
                raise ConfigError(f"evaluation.{name}={list(values)} names one twice: name each once")
        for name, most in (("pairs", self.pairs), ("loads", max(self.loads, default=1))):
            if most > N_KEYS:
                raise ConfigError(
                    f"evaluation.{name}: {most} pairs are more than the {N_KEYS} keys there are: give fewer"
                )

    def fitting_loads(self, trained_at: int, most: int) -> tuple[tuple[int, ...], int]:
        """Return the loads of at most `most` pairs that fit a length, ascending, and the shortest length for all."""
        lengths = self.lengths(trained_at)
        loads = sorted(each for each in self.loads if each <= most and least_length(each) <= lengths[-1])
        needed = least_length(max(loads, default=1))
        return tuple(loads), next((each for each in lengths if each >= needed), lengths[-1])

    def lengths(self, trained_at: int) -> tuple[int, ...]:
        """Return the lengths of texts, ascending, the training context among them."""
        return tuple(trained_at * multiple for multiple in sorted({1, *self.multiples}))

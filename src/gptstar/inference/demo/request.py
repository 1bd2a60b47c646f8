"""Checked requests of the page's visitors, and their limits."""

from dataclasses import dataclass
from typing import Any

from gptstar.errors import ConfigError
from gptstar.fields import Count, Positive, check_ranges
from gptstar.inference.sampling import Sampling

METHODS: dict[str, tuple[str, ...]] = {
    "Greedy": (),
    "Temperature": ("temperature",),
    "Top-k": ("temperature", "top_k"),
    "Nucleus": ("temperature", "top_p"),
    "Typical": ("temperature", "typical_p"),
}
"""Sampling methods, and the settings of each."""


@dataclass(frozen=True)
class Limits:
    """The limits of the page.

    Attributes:
        tokens: most new tokens per request.
        characters: most characters of a prompt.
        seconds: most seconds per request; the text generated until then is kept.
        at_once: most requests at the same time; others wait.
        waiting: most waiting requests.
    """

    tokens: Count = 1000
    characters: Count = 20_000
    seconds: Positive = 120
    at_once: Count = 2
    waiting: Count = 20

    def __post_init__(self) -> None:
        check_ranges(self, "")


@dataclass(frozen=True)
class Request:
    """A checked request."""

    prompt: str
    n_new: int
    sampling: Sampling

    @classmethod
    def parse(cls, limits: Limits, prompt: object, n_new: object, method: object, **settings: Any) -> "Request":
        """Check values from the network, which may be anything.

        Args:
            settings: settings of `Sampling`; those that the method doesn't use are ignored.

        Raises:
            ConfigError: a value is out of range, or has a wrong type.
        """
        if not isinstance(prompt, str):
            raise ConfigError("the prompt is not text")
        if len(prompt) > limits.characters:
            raise ConfigError(f"the prompt has {len(prompt):,} characters: shorten it to {limits.characters:,}")
        n_new, seed = _whole(n_new, "length"), _whole(settings["seed"], "seed")
        if not 1 <= n_new <= limits.tokens:
            raise ConfigError(f"length={n_new} is not between 1 and {limits.tokens}")
        if not isinstance(method, str) or method not in METHODS:
            raise ConfigError(f"the method is not one of {', '.join(METHODS)}")
        used = {name: settings[name] for name in METHODS[method]}
        if method == "Greedy":
            used["temperature"] = 0.0
        elif used["temperature"] == 0.0:
            raise ConfigError("temperature=0 means no sampling: choose the method Greedy")
        if "top_k" in used:
            used["top_k"] = _whole(used["top_k"], "top_k")
        sampling = Sampling(seed=seed, repetition_penalty=settings["repetition_penalty"], **used)
        # Replace lone surrogates, which UTF-8 can't represent.
        return cls(prompt.encode("utf-8", "replace").decode(), n_new, sampling)


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63 or value != int(value):
        raise ConfigError(f"{name} is not a whole number: give a whole number")
    return int(value)

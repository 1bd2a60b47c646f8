"""What a visitor of the page may request."""

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
"""Ways to draw, and the settings of each."""


@dataclass(frozen=True)
class Limits:
    """What the page gives to one visitor.

    Attributes:
        tokens: new tokens at most.
        characters: of the prompt.
        seconds: of writing; what is written by then stays.
        at_once: texts that are written at the same time; others wait.
        waiting: texts that may wait.
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
    """A request that has been checked."""

    prompt: str
    n_new: int
    sampling: Sampling

    @classmethod
    def parse(cls, limits: Limits, prompt: object, n_new: object, method: object, **settings: Any) -> "Request":
        """Check what came over the network, whatever it is.

        Args:
            settings: of `Sampling`; those that the method does not have are ignored.

        Raises:
            ConfigError: something is out of range, or of a wrong type.
        """
        if not isinstance(prompt, str):
            raise ConfigError("the prompt is not a text")
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
            raise ConfigError("temperature=0 draws nothing: take the method Greedy")
        if "top_k" in used:
            used["top_k"] = _whole(used["top_k"], "top_k")
        sampling = Sampling(seed=seed, repetition_penalty=settings["repetition_penalty"], **used)
        # A page takes what UTF-8 can hold, and halves of characters are not among it.
        return cls(prompt.encode("utf-8", "replace").decode(), n_new, sampling)


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63 or value != int(value):
        raise ConfigError(f"{name} is not a whole number: give one")
    return int(value)

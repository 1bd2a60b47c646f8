"""What a visitor of the page may ask for."""

from dataclasses import dataclass
from typing import Any

from gptstar.errors import ConfigError
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
        tokens: new ones, at most.
        characters: of the prompt.
        seconds: of writing; what is there by then stays.
        at_once: texts that are written at the same time; others wait.
        waiting: that may wait.
    """

    tokens: int = 1000
    characters: int = 20_000
    seconds: float = 120
    at_once: int = 2
    waiting: int = 20

    def __post_init__(self) -> None:
        for name in ("tokens", "characters", "seconds", "at_once", "waiting"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} leaves nothing to give: take 1 or more")


@dataclass(frozen=True)
class Request:
    """A request that was found to be in order."""

    prompt: str
    n_new: int
    sampling: Sampling

    @classmethod
    def of(
        cls, limits: Limits, prompt: object, n_new: object, method: object, seed: object, **settings: Any
    ) -> "Request":
        """Check what came over the network, whatever it is.

        Args:
            settings: of `Sampling`; those that the method does not have are not looked at.

        Raises:
            ConfigError: something is out of range, or of another kind than it has to be.
        """
        if not isinstance(prompt, str):
            raise ConfigError("the prompt is no text")
        if len(prompt) > limits.characters:
            raise ConfigError(f"the prompt has {len(prompt):,} characters; {limits.characters:,} are the most here")
        n_new, seed = _whole(n_new, "length"), _whole(seed, "seed")
        if not 1 <= n_new <= limits.tokens:
            raise ConfigError(f"length={n_new} is not between 1 and {limits.tokens}, the most here")
        if not isinstance(method, str) or method not in METHODS:
            raise ConfigError(f"the method is none of {', '.join(METHODS)}")
        used = {name: settings[name] for name in METHODS[method]} | {"temperature": settings["temperature"]}
        if method == "Greedy":
            used["temperature"] = 0.0
        if "top_k" in used:
            used["top_k"] = _whole(used["top_k"], "top_k")
        sampling = Sampling(seed=seed, repetition_penalty=settings["repetition_penalty"], **used)
        if sampling.temperature == 0.0 and method != "Greedy":
            raise ConfigError("a temperature of 0 is what Greedy is for")
        # A page takes what UTF-8 can hold; halves of characters are none.
        return cls(prompt.encode("utf-8", "replace").decode(), n_new, sampling)


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) >= 2**63:
        raise ConfigError(f"{name} is no whole number")
    if value != int(value):
        raise ConfigError(f"{name}={value} is no whole number")
    return int(value)

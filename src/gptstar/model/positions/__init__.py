"""Positional encodings: one file per kind, registered under its name in a configuration.

To add your own kind, derive a frozen dataclass from `Positions` in a module that you name as a plugin:

    @POSITIONS.register("mine")
    @dataclass(frozen=True)
    class Mine(Positions):
        scale: float = 1.0
"""

from gptstar.choices import Choices
from gptstar.model.positions.alibi import Alibi, alibi_slopes
from gptstar.model.positions.base import Pairs, Positions, Scaling
from gptstar.model.positions.fire import Fire
from gptstar.model.positions.fox import Fox
from gptstar.model.positions.kerple import Kerple
from gptstar.model.positions.learned import Learned
from gptstar.model.positions.log_alibi import LogAlibi
from gptstar.model.positions.none import NoPositions
from gptstar.model.positions.p_rope import PRope
from gptstar.model.positions.rotary import Rotary
from gptstar.model.positions.sinusoidal import Sinusoidal
from gptstar.model.positions.t5 import T5

POSITIONS: Choices[Positions] = Choices("model.positions", tag="kind", is_word=True)

_KINDS: dict[str, type[Positions]] = {
    "alibi": Alibi,
    "learned": Learned,
    "rotary": Rotary,
    "none": NoPositions,
    "sinusoidal": Sinusoidal,
    "t5": T5,
    "kerple": Kerple,
    "fire": Fire,
    "log_alibi": LogAlibi,
    "p_rope": PRope,
    "fox": Fox,
}
for _name, _kind in _KINDS.items():  # not as decorators: exported folders contain a kind's file without the registry
    POSITIONS.register(_name)(_kind)

__all__ = [
    "POSITIONS",
    "T5",
    "Alibi",
    "Fire",
    "Fox",
    "Kerple",
    "Learned",
    "LogAlibi",
    "NoPositions",
    "PRope",
    "Pairs",
    "Positions",
    "Rotary",
    "Scaling",
    "Sinusoidal",
    "alibi_slopes",
]

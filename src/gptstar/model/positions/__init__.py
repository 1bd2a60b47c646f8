"""How a token learns where it is: one file per kind, registered under the name that a configuration gives.

Your own kind is a frozen dataclass that derives from `Positions`, in a module that you name as a plugin:

    @POSITIONS.register("mine")
    @dataclass(frozen=True)
    class Mine(Positions):
        scale: float = 1.0
"""

from gptstar.choices import Choices
from gptstar.model.positions.alibi import Alibi, alibi_slopes
from gptstar.model.positions.base import Pairs, Positions, Scaling
from gptstar.model.positions.learned import Learned
from gptstar.model.positions.none import NoPositions
from gptstar.model.positions.rotary import Rotary

POSITIONS: Choices[Positions] = Choices("model.positions", tag="kind", is_word=True)

# Not as decorators: a kind's file goes into exported folders, where there is no registry.
for _name, _kind in {"alibi": Alibi, "learned": Learned, "rotary": Rotary, "none": NoPositions}.items():
    POSITIONS.register(_name)(_kind)

__all__ = ["POSITIONS", "Alibi", "Learned", "NoPositions", "Pairs", "Positions", "Rotary", "Scaling", "alibi_slopes"]

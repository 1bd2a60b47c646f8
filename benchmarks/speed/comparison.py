"""A comparison as data: who takes part, what one round does, and what the figures are held against."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Entry:
    """One who takes part.

    Attributes:
        name: in the tables.
        build: `module.function` below `speed`, which returns a `Job`.
        arguments: of that function.
        series: entries of one series differ in their tokens alone; how their time and memory grow is reported.
        address_space: bytes that the process may map at most.
        keeps_memory: whether what is freed stays with the process, as in a training run of ours (`training/memory.py`).
    """

    name: str
    build: str
    arguments: Mapping[str, Any]
    series: str | None = None
    address_space: int | None = None
    keeps_memory: bool = False


@dataclass(frozen=True)
class Claim:
    """A figure that is stated, with what it has to reach.

    Attributes:
        quantity: `speed`: tokens a second of one over the other's; `memory`: peak over peak; `token`: seconds a token
            over seconds a token; `share`: of the machine's limit, of one entry; `mfu`: of the rate in the data sheet;
            `peak`: peak memory in GB; `first`: seconds of the first step, compilation included; `growth`: the power of
            the length by which a series' memory grows.
        of, over: entries, or a series.
        floor: what has to be reached, and `aim`, what is hoped for; None where it is only stated.
    """

    quantity: Literal["speed", "memory", "token", "share", "mfu", "peak", "first", "growth"]
    of: str
    over: str | None = None
    floor: float | None = None
    aim: float | None = None

    @property
    def name(self) -> str:
        """What is said."""
        words = {
            "speed": f"{self.of} against {self.over}",
            "memory": f"peak memory, {self.of} of {self.over}",
            "token": f"a token, {self.of} of {self.over}",
            "share": f"{self.of}, of the limit",
            "mfu": f"{self.of}, MFU",
            "peak": f"peak memory, {self.of}, GB",
            "first": f"first step, {self.of}, seconds",
            "growth": f"memory to read grows as T to the power of, {self.of}",
        }
        return words[self.quantity]

    @property
    def less_is_better(self) -> bool:
        """Whether the floor is a ceiling."""
        return self.quantity in ("memory", "token", "peak", "first", "growth")


@dataclass(frozen=True)
class Comparison:
    """Entries that are asked in turn, round after round.

    Attributes:
        name: to choose it by.
        text: what is compared, a sentence or two.
        baseline: the entry whose tokens a second are 1.
        limit: of the machine, that shares are of: `gemm_bf16`, `gemm_float32` or `read_bandwidth`.
        rounds: of a whole run, and `quick` of a quick one, 0 where it is left out.
        fresh: each round in a new process, one at a time: for peak memory, and where all at once would be too much.
    """

    name: str
    text: str
    entries: tuple[Entry, ...]
    baseline: str
    limit: Literal["gemm_bf16", "gemm_float32", "read_bandwidth"]
    rounds: int
    quick: int = 0
    fresh: bool = False
    claims: tuple[Claim, ...] = ()

"""The one loop of all comparisons: limits of the machine, then each entry a round, again and again."""

import contextlib
import datetime
from collections.abc import Callable
from dataclasses import dataclass, field

from speed.comparison import Comparison, Entry
from speed.worker import Worker, WorkerError


@dataclass
class Measured:
    """What an entry showed.

    Attributes:
        about: `tokens` a step, `flops` a token, `weight_bytes` a step, `n_params`, and `held`, bytes before the rounds.
        seconds, cpu_seconds: a step, one for each round; `cpu_seconds` are of all cores.
        peak: bytes, the most that its process held.
        failure: why there are no more figures.
    """

    about: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    failure: str | None = None


@dataclass
class Outcome:
    """A comparison as it was measured, with nothing derived.

    Attributes:
        date, machine: when and where.
        limit: what the machine could do at most, before each round and after the last, a second.
        data_sheet: a GPU's bfloat16 rate by its maker, operations a second.
        entries: by name, in their order.
    """

    date: str
    machine: dict[str, str]
    limit: list[float]
    data_sheet: float | None
    entries: dict[str, Measured]


def measure(
    comparison: Comparison,
    *,
    rounds: int,
    device: str,
    machine: dict[str, str],
    data_sheet: float | None = None,
    advance: Callable[[str], object] = lambda _: None,
) -> Outcome:
    """Build every entry in a process of its own, and ask all in turn: A B C A B C.

    Args:
        machine: in words.
        advance: is told the name of what has been done: each entry once when it is built, and at each round.
    """
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    outcome = Outcome(date, machine, [], data_sheet, {entry.name: Measured() for entry in comparison.entries})
    workers: dict[str, Worker] = {}

    def attempt(entry: Entry, action: Callable[[Entry, Measured], None]) -> None:
        measured = outcome.entries[entry.name]
        if measured.failure is None:
            try:
                action(entry, measured)
            except WorkerError as error:
                measured.failure = str(error)
                if entry.name in workers:
                    workers.pop(entry.name).close()
        advance(entry.name)

    def build(entry: Entry, measured: Measured) -> None:
        workers[entry.name] = Worker(entry.build, entry.arguments, entry.address_space, entry.keeps_memory)
        measured.about = workers[entry.name].about

    def close() -> None:
        for worker in workers.values():
            worker.close()

    def one_round(entry: Entry, measured: Measured) -> None:
        if comparison.fresh:
            build(entry, measured)
        found = workers[entry.name].round()
        measured.seconds.append(found["seconds"])
        measured.cpu_seconds.append(found["cpu_seconds"])
        measured.peak = max(measured.peak, found["peak"])
        if comparison.fresh:
            workers.pop(entry.name).close()

    with contextlib.ExitStack() as stack:
        limits = Worker("machine.limits", {"wanted": (comparison.limit,), "device": device})
        stack.callback(limits.close)
        stack.callback(close)
        if not comparison.fresh:
            for entry in comparison.entries:
                attempt(entry, build)
        for _ in range(rounds):
            outcome.limit.append(limits.round()[comparison.limit])
            for entry in comparison.entries:
                attempt(entry, one_round)
        outcome.limit.append(limits.round()[comparison.limit])
    return outcome


def n_actions(comparison: Comparison, rounds: int) -> int:
    """How many times `measure` tells that it has advanced."""
    return len(comparison.entries) * (rounds + (not comparison.fresh))

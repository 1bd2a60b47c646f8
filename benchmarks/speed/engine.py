"""The one loop of all comparisons: limits of the machine, then each entry a round, again and again."""

import datetime
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from speed.comparison import Comparison, Entry
from speed.worker import PATIENCE, Worker, WorkerError

LIMITS = "the machine's limits"
"""By this name the process that measures them goes beside the entries'."""

LEAST_ROUNDS = 3
"""Rounds that are measured even after the deadline."""

GRACE = 15.0
"""Seconds after the deadline in which a build that has begun may end."""

SKIPPED = "skipped: no time was left"


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


def start(comparison: Comparison, device: str) -> dict[str, Worker]:
    """Start the process of each entry, and under `LIMITS` the one that measures the machine; of a fresh one only that.

    Each imports what it needs meanwhile, and waits.
    """
    workers = {LIMITS: Worker("machine.limits", {"names": (comparison.limit,), "device": device})}
    return workers if comparison.fresh else workers | {entry.name: worker_of(entry) for entry in comparison.entries}


def worker_of(entry: Entry) -> Worker:
    """The process of an entry, started."""
    return Worker(entry.build, entry.arguments, entry.address_space, entry.keeps_memory)


def measure(
    comparison: Comparison,
    *,
    rounds: int,
    device: str,
    machine: dict[str, str],
    data_sheet: float | None = None,
    advance: Callable[[str], None] = lambda _: None,
    workers: dict[str, Worker] | None = None,
    ready: Callable[[], None] = lambda: None,
    deadline: float = math.inf,
) -> Outcome:
    """Build all, then ask each in turn for a round, as often as asked, with the machine's limit between.

    An entry that fails is left out from then on; what it gave so far stays.

    Args:
        rounds: of each entry.
        machine: in words.
        advance: is told the name of what has been done: each entry once when it is built, and at each round.
        workers: from `start`; None starts them now.
        ready: is called when all workers have imported what they need.
        deadline: by `time.monotonic`. After it no entry is built, and rounds end as soon as there are `LEAST_ROUNDS`.
    """
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    outcome = Outcome(date, machine, [], data_sheet, {entry.name: Measured() for entry in comparison.entries})
    workers = start(comparison, device) if workers is None else workers

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
        left = deadline - time.monotonic()
        if left <= 0:
            raise WorkerError(SKIPPED)
        if comparison.fresh:
            workers[entry.name] = worker_of(entry)
        workers[entry.name].build(min(PATIENCE, left + GRACE))
        measured.about = workers[entry.name].about

    def one_round(entry: Entry, measured: Measured) -> None:
        if comparison.fresh:
            build(entry, measured)
        found = workers[entry.name].round()
        measured.seconds.append(found["seconds"])
        measured.cpu_seconds.append(found["cpu_seconds"])
        measured.peak = max(measured.peak, found["peak"])
        if comparison.fresh:
            workers.pop(entry.name).close()

    try:
        for worker in workers.values():
            worker.wait_until_ready()
        ready()
        limits = workers[LIMITS]
        limits.build()
        if not comparison.fresh:
            for entry in comparison.entries:
                attempt(entry, build)
        for number in range(rounds):
            failed = not comparison.fresh and all(each.failure for each in outcome.entries.values())
            if failed or (number >= LEAST_ROUNDS and time.monotonic() > deadline):
                break
            outcome.limit.append(limits.round()[comparison.limit])
            for entry in comparison.entries:
                attempt(entry, one_round)
        outcome.limit.append(limits.round()[comparison.limit])
    finally:
        close(workers.values())
    return outcome


def close(workers: Iterable[Worker]) -> None:
    """End these processes."""
    for worker in workers:
        worker.close()


def n_actions(comparison: Comparison, rounds: int) -> int:
    """How many times `measure` tells that it has advanced."""
    return len(comparison.entries) * (rounds + (not comparison.fresh))

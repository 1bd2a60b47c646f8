"""The processes of a job, one a device: which of them this is, and what they do together."""

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from gptstar.errors import ConfigError, RankLost, Refusal, RefusedElsewhere

Result = TypeVar("Result")

BROKEN = r"[Cc]onnection (closed|reset|refused)|Broken pipe|closed by peer|process exited|ncclRemoteError"
"""What PyTorch's errors say where another process is gone."""

LAUNCHER = "GPTSTAR_LAUNCHER"
"""The variable that tells ranks, and jobs of a sweep, which process started them."""

RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The variables by which torchrun tells a process its place among others."""

SECONDS_UNTIL_NOTICE = 20.0
"""After which a process says that it waits for the others."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""

PATIENCE = timedelta(days=30)
"""While one rank prepares text or reads a task's items, the others wait."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its job; one process by itself is the first of one.

    Attributes:
        rank: 0 is the first.
        world_size: how many there are.
        local_rank: among those of the same machine.
        group: through which they talk, of PyTorch's; None for one process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    def together(self, action: Callable[[], Result]) -> Result:
        """Run an action on every rank and return this rank's result; if one rank refuses, none continues.

        Raises:
            Refusal: this rank's own.
            RefusedElsewhere: another's.
        """
        if self.world_size == 1:
            return action()
        outcome, refusal = None, None
        try:
            outcome = action()
        except Refusal as error:
            refusal = error
        refused = self.gathered(refusal and str(refusal))
        if refusal is not None:
            raise self.alike(refusal) if refused[0] == str(refusal) else refusal
        if any(refused):
            raise RefusedElsewhere(f"rank {next(rank for rank, said in enumerate(refused) if said)} refused")
        return outcome  # type: ignore[return-value]

    def gathered(self, value: Result) -> list[Result]:
        """Gather a value from every rank, by rank; it has to survive pickling."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def agreed(self, action: Callable[[], Result]) -> Result:
        """Run an action on the first rank and return its result on all of them; it has to survive pickling.

        Raises:
            Refusal: the first rank's own; `RefusedElsewhere` on the others.
        """
        result = [self.together(lambda: action() if self.first else None)]
        if self.world_size > 1:
            dist.broadcast_object_list(result, src=0, group=self.group)
        return result[0]  # type: ignore[return-value]

    def in_turn(self, action: Callable[[], Result]) -> Result:
        """Run an action on every rank; the first of each machine runs it first, and leaves files to the others.

        Raises:
            Refusal: this rank's own; `RefusedElsewhere` where another refused.
        """
        leads = self.local_rank == 0
        first = self.together(lambda: action() if leads else None)
        later = self.together(lambda: None if leads else action())
        return first if leads else later  # type: ignore[return-value]

    def alike(self, refusal: Refusal) -> Refusal:
        """Return what to raise if all ranks refuse for the same reason, so that one of them prints it."""
        return refusal if self.first else RefusedElsewhere(str(refusal))

    def apart(self) -> "Ranks":
        """The same ranks, with a process group of their own, for a thread; every rank has to call this."""
        return replace(self, group=_patient_group()) if self.world_size > 1 else self


def _patient_group() -> Any:
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def end_with_the_launcher() -> None:
    """Receive SIGTERM if the launcher dies. Linux only.

    Raises:
        RankLost: the launcher is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        raise RankLost("the process that started this one is gone")


def started_processes() -> int:
    """Count the processes of this job, by the variables that a launcher sets; 1 without a launcher.

    Raises:
        ConfigError: a variable is missing, or is not a number, as where a launcher that is gone left some behind.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 1
    for name in RENDEZVOUS:
        value = os.environ.get(name, "")
        if (name == "MASTER_ADDR" and value) or value.isdecimal():
            continue
        wrong = f"{name}={value} is not a number" if value else f"WORLD_SIZE is set and {name} is not"
        raise ConfigError(f"in the environment {wrong}: start the run by torchrun, or unset {', '.join(RENDEZVOUS)}")
    return int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def joined(device_type: str = "cpu") -> Iterator[Ranks]:
    """Join the other processes of a job that torchrun started, if one did.

    Args:
        device_type: the kind of device that this process computes on.

    Raises:
        ConfigError: as `started_processes`.
        RankLost: the connection to another rank broke.
    """
    world_size = started_processes()
    if world_size > 1 or LAUNCHER in os.environ:
        end_with_the_launcher()
    if world_size == 1:
        yield Ranks()
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    with _notice_while_waiting(world_size):
        dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world_size, local_rank, _patient_group())
    except RuntimeError as error:
        if not re.search(BROKEN, str(error)):
            raise
        raise RankLost(
            f"rank {rank} lost the connection to another rank, which died or whose machine did; the same command with "
            "the same output goes on from the last checkpoint"
        ) from error
    dist.destroy_process_group()  # after an error it might wait for ranks that are gone


@contextlib.contextmanager
def _notice_while_waiting(world_size: int) -> Iterator[None]:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    notice = (
        f"waiting for {world_size} processes to meet at {address}; if no launcher started this one, unset "
        f"{', '.join(RENDEZVOUS)}"
    )
    timer = threading.Timer(SECONDS_UNTIL_NOTICE, lambda: print(notice, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

"""The ranks of a job, one process per device, and their joint actions."""

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
"""A pattern of PyTorch's error messages when another process has died."""

LAUNCHER = "GPTSTAR_LAUNCHER"
"""The environment variable with the process id of the launcher, for ranks and for jobs of a sweep."""

RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which torchrun assigns a process its rank."""

SECONDS_UNTIL_NOTICE = 20.0
"""Seconds after which a process prints that it is waiting for the others."""

PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that requests a signal when the parent process dies."""

PATIENCE = timedelta(days=30)
"""The timeout while other ranks wait for one that prepares text or reads a task's items."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process in its job; a single process is rank 0 of 1.

    Attributes:
        rank: the index of this process, from 0.
        world_size: the number of processes.
        local_rank: the index of this process among those of the same machine.
        group: PyTorch's process group for communication; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes for all."""
        return self.rank == 0

    def together(self, action: Callable[[], Result]) -> Result:
        """Run an action on every rank and return this rank's result; if it fails on one rank, all ranks stop.

        Raises:
            Refusal: the action failed on this rank.
            RefusedElsewhere: the action failed on another rank.
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
            raise RefusedElsewhere(f"rank {next(rank for rank, failed in enumerate(refused) if failed)} refused")
        return outcome  # type: ignore[return-value]

    def gathered(self, value: Result) -> list[Result]:
        """Gather a picklable value from every rank, in order of the ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def agreed(self, action: Callable[[], Result]) -> Result:
        """Run an action on the first rank, and return its picklable result on all ranks.

        Raises:
            Refusal: the action failed on the first rank; the others raise `RefusedElsewhere`.
        """
        result = [self.together(lambda: action() if self.first else None)]
        if self.world_size > 1:
            dist.broadcast_object_list(result, src=0, group=self.group)
        return result[0]  # type: ignore[return-value]

    def in_turn(self, action: Callable[[], Result]) -> Result:
        """Run an action on every rank; the first rank of each machine goes first, so that the others find its files.

        Raises:
            Refusal: the action failed on this rank; if it failed on another, `RefusedElsewhere` is raised.
        """
        leads = self.local_rank == 0
        first = self.together(lambda: action() if leads else None)
        later = self.together(lambda: None if leads else action())
        return first if leads else later  # type: ignore[return-value]

    def alike(self, refusal: Refusal) -> Refusal:
        """Return the error to raise if all ranks fail for the same reason, so that only the first prints it."""
        return refusal if self.first else RefusedElsewhere(str(refusal))

    def with_own_group(self) -> "Ranks":
        """Return the same ranks with a separate process group, for use in a thread; all ranks must call this."""
        return replace(self, group=_patient_group()) if self.world_size > 1 else self


def _patient_group() -> Any:
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def end_with_the_launcher() -> None:
    """Receive SIGTERM if the launcher dies. Linux only.

    Raises:
        RankLost: the launcher has already died.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        raise RankLost("the launcher that started this process has died")


def started_processes() -> int:
    """Count the processes of this job, by the environment variables of the launcher; 1 without a launcher.

    Raises:
        ConfigError: a variable is missing or not a number, for instance because it is left from another launcher.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 1
    for name in RENDEZVOUS:
        value = os.environ.get(name, "")
        if (name == "MASTER_ADDR" and value) or value.isdecimal():
            continue
        wrong = f"{name}={value} is not a number" if value else f"WORLD_SIZE is set, but {name} is not"
        raise ConfigError(f"in the environment {wrong}: start the run with torchrun, or unset {', '.join(RENDEZVOUS)}")
    return int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def joined(device_type: str = "cpu") -> Iterator[Ranks]:
    """Join the process group of a job if torchrun started this process, and yield the ranks.

    Args:
        device_type: the type of this process's device.

    Raises:
        ConfigError: for the same reasons as in `started_processes`.
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
            f"rank {rank} lost the connection to another rank, because its process or machine died; the same command "
            "with the same output continues from the last checkpoint"
        ) from error
    dist.destroy_process_group()  # after an error it might wait for dead ranks


@contextlib.contextmanager
def _notice_while_waiting(world_size: int) -> Iterator[None]:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    notice = (
        f"waiting for {world_size} processes to connect at {address}; if no launcher started this process, unset "
        f"{', '.join(RENDEZVOUS)}"
    )
    timer = threading.Timer(SECONDS_UNTIL_NOTICE, lambda: print(notice, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

"""Start the processes of a run on this machine, one per device, with torchrun's own launcher."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gptstar.defaults import is_given
from gptstar.entry import SHOW_ALL
from gptstar.errors import PREEMPTED, ConfigError, Interrupted, TrainingError
from gptstar.ranks import LAUNCHER, end_with_the_launcher
from gptstar.terminal import plain
from gptstar.training.hardware import Hardware

TRAIN = ("-P", "-m", "gptstar", "train")
"""Python's arguments for training, before the overrides. `-P`: a queue.py in the folder must not hide Python's own."""

EXPLAINED = 1
"""The exit code of a process that has printed the reason in one line."""

FORWARDED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
"""Signals that the launcher forwards to the ranks."""

SECONDS_TO_SAVE = 600
"""Seconds that ranks have to save after a signal; PyTorch before 2.12 gives them 30."""


@dataclass(frozen=True)
class Node:
    """This machine's number in a run on several machines, and the address of the first.

    Attributes:
        number: the number of the machine, from 0.
        address, port: the first machine's, where the processes connect.
    """

    number: int
    address: str
    port: int

    @classmethod
    def this(cls) -> Self | None:
        """Read `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT`, or SLURM's variables; None if there are none.

        Raises:
            ConfigError: they are incomplete.
        """
        known = os.environ
        if "NODE_RANK" in known:
            if "MASTER_ADDR" not in known:
                raise ConfigError("NODE_RANK is set and MASTER_ADDR is not: give the first machine's address")
            return cls(int(known["NODE_RANK"]), known["MASTER_ADDR"], int(known.get("MASTER_PORT", "29500")))
        if int(known.get("SLURM_JOB_NUM_NODES", "1")) > 1:
            listed = ["scontrol", "show", "hostnames", known["SLURM_JOB_NODELIST"]]
            first = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()[0]
            return cls(int(known["SLURM_NODEID"]), first, 20000 + int(known["SLURM_JOB_ID"]) % 20000)
        return None


def launches(hardware: Hardware) -> bool:
    """Whether this process has to start the run's processes, because no launcher has started them.

    Raises:
        ConfigError: there are several nodes, and the variables that connect them are missing.
    """
    if hardware.world_size == 1 or "WORLD_SIZE" in os.environ:
        return False
    if hardware.nodes > 1 and Node.this() is None:
        raise ConfigError(
            f"hardware.nodes={hardware.nodes}: give the same command on each node, with MASTER_ADDR=FIRST_NODE and "
            f"NODE_RANK=0 … {hardware.nodes - 1} before it, or choose launcher=slurm, or start it by torchrun"
        )
    return True


def launch(composed: DictConfig, hardware: Hardware) -> None:
    """Run a job in one process per device, and wait. If one process fails, all end.

    Args:
        composed: the job's configuration.

    Raises:
        Interrupted: a signal came, and was forwarded to all ranks.
        TrainingError: a process died without a message; the error names its rank.
        SystemExit: a process ended with an error message.
    """
    if LAUNCHER in os.environ:  # of a sweep
        end_with_the_launcher()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # says in fifty lines what we do in one
    if hardware.device().type == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // hardware.n_devices)))
    if not SHOW_ALL:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # set by us, and not meant for the ranks
    os.environ[LAUNCHER] = str(os.getpid())
    handlers = {
        number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, FORWARDED_SIGNALS.split(","))
    }
    for forwarded in handlers:
        signal.signal(forwarded, _told)  # PyTorch before 2.10 has its own handlers for four of them only
    try:
        elastic_launch(_how(hardware), sys.executable)(*TRAIN, *words_of(composed))
    except SignalException as error:
        number = int(error.sigval)
        raise Interrupted(
            f"{signal.Signals(number).name}: all ranks were told to save and end", 128 + number
        ) from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (
            128 + PREEMPTED,
            -PREEMPTED,
        ):  # the scheduler signalled the ranks first
            raise Interrupted(f"{PREEMPTED.name}: the ranks have ended", 128 + PREEMPTED) from error
        if failure.exitcode == EXPLAINED or failure.exitcode >= 128:
            raise SystemExit(failure.exitcode) from error
        how = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise TrainingError(
            f"rank {rank} of {hardware.world_size} died ({how}), and the others were ended; the same command with the "
            "same output goes on from the last checkpoint"
        ) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _how(hardware: Hardware) -> LaunchConfig:
    node = Node.this() if hardware.nodes > 1 else None
    meeting: dict[str, Any] = {
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",  # a free port
        "local_addr": "localhost",
    }
    if node is not None:
        meeting = {
            "run_id": "gptstar",
            "rdzv_backend": "static",
            "rdzv_endpoint": f"{node.address}:{node.port}",
            "rdzv_configs": {"rank": node.number, "timeout": 900},
        }
    newer: dict[str, Any] = {"signals_to_handle": FORWARDED_SIGNALS, "shutdown_timeout": SECONDS_TO_SAVE}
    accepted = {field.name for field in fields(LaunchConfig)}  # PyTorch has the first since 2.10, the other since 2.12
    return LaunchConfig(
        min_nodes=hardware.nodes,
        max_nodes=hardware.nodes,
        nproc_per_node=hardware.n_devices,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        **meeting,
        **{name: value for name, value in newer.items() if name in accepted},
    )


def _told(number: int, _: object) -> None:
    """Make the launcher forward a signal, as PyTorch's own handlers do."""
    raise SignalException(f"process {os.getpid()} got signal {number}", signal.Signals(number))


@contextlib.contextmanager
def requeued_if_preempted() -> Iterator[None]:
    """Forward SIGUSR2, once the run has saved, to the handler before ours: submitit's, which requeues the job."""
    scheduler = signal.getsignal(PREEMPTED)
    try:
        yield
    except Interrupted as error:
        if error.exit_code == 128 + PREEMPTED and callable(scheduler):
            print(plain(f"{error}; back into the queue"), flush=True)
            scheduler(PREEMPTED, None)
        raise


OF_SWEEP = ("group", "run_name")
"""Keys of `tracker` that a sweep gives its jobs."""


def describe_sweep(composed: DictConfig) -> None:
    """Give a job of a sweep the names under which trackers show it, unless the user gave some."""
    tracker, folder = composed.get("tracker"), Path(composed.output)
    for key, name in zip(OF_SWEEP, (folder.parent.name, folder.name), strict=True):
        if isinstance(tracker, DictConfig) and tracker.get(key) is None:
            tracker[key] = name


def words_of(composed: DictConfig) -> list[str]:
    """Return the words of a command line that runs the current job alone, in its own folder."""
    hydra_config = HydraConfig.get()
    folders = [each.path for each in hydra_config.runtime.config_sources if each.provider == "command-line"]
    decided = ("output=", "launcher=")  # by now; another submission would follow
    chosen = [word for word in hydra_config.overrides.task if not word.lstrip("+").startswith(decided)]
    tracker = composed.get("tracker") or {}
    of_sweep = [key for key in OF_SWEEP if tracker.get(key) and not is_given(f"tracker.{key}", chosen)]
    chosen += [f"tracker.{key}='{tracker[key]}'" for key in of_sweep]
    directories = [word for folder in folders for word in ("--config-dir", folder)]
    return [*directories, *chosen, f"output='{composed.output}'", "hydra.mode=RUN"]

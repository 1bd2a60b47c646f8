"""A job of a sweep in its own process: a crash or a lack of memory there ends no other job."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gptstar.config import TrainConfig
from gptstar.entry import SHOW_ALL
from gptstar.errors import ConfigError, TrainingError
from gptstar.launch.devices import TRAIN
from gptstar.ranks import LAUNCHER
from gptstar.training.memory import GPU_PART
from gptstar.training.plan import this_device


class Job:
    """A process that runs one job.

    Args:
        words: its overrides.
        log: the file for its output, if several jobs run at the same time; otherwise it prints to this terminal.
        environment: environment variables to set in addition to those of this process.
    """

    def __init__(
        self, words: Sequence[str], *, log: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        inherited = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR" or SHOW_ALL}
        self._log = log
        with open(log or os.devnull, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, *TRAIN, *words],
                env=inherited | (environment or {}) | {LAUNCHER: str(os.getpid())},
                stdout=file if log else None,
                stderr=file if log else subprocess.PIPE,
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def tell(self, number: int) -> None:
        """Forward a signal to the process."""
        self._process.send_signal(number)

    def wait(self) -> None:
        """Wait until the process has ended.

        Raises:
            TrainingError: the job failed; the message is its last line of output.
        """
        said = ""
        for line in self._process.stderr or ():
            sys.stderr.write(text := line.decode(errors="replace"))
            sys.stderr.flush()
            said = text.strip() or said
        if (code := self._process.wait()) == 0:
            return
        if self._log is not None:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
        raise TrainingError(killed or said.removeprefix("error: ") or f"exit code {code}")


def share_of_machine(place: int, at_once: int) -> dict[str, str]:
    """Return the environment variables that limit a job to its GPUs and its share of the cores.

    If there are fewer GPUs than jobs, several jobs share a GPU, and each gets a part of its memory.

    Args:
        place: the job's number among the running ones, from 0 to `at_once - 1`.
        at_once: the number of jobs that run at the same time.
    """
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))}
    if devices := visible_gpus():
        each = max(1, len(devices) // at_once)
        first = place * each % len(devices)
        share["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + each])
        if (sharing := jobs_on_a_gpu(at_once, len(devices))) > 1:
            share[GPU_PART] = f"{1 / sharing:g}"
    return share


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(each) for each in range(torch.cuda.device_count())]


def jobs_on_a_gpu(at_once: int, n_gpus: int) -> int:
    """Return the largest number of jobs that share a GPU."""
    return -(-at_once // n_gpus)


def check_shared_gpu(config: TrainConfig, at_once: int) -> None:
    """Check that the jobs that share a GPU fit into its memory, as `gptstar plan` estimates it.

    Raises:
        ConfigError: they don't fit; the message says how many do.
    """
    gpus = visible_gpus()
    if config.hardware.device().type != "cuda" or (sharing := jobs_on_a_gpu(at_once, len(gpus))) == 1:
        return
    device = this_device(config.hardware)
    part = replace(device, memory=device.memory // sharing)
    needed = config.memory(part).total
    if needed > part.memory:
        fitting = max(1, device.memory // needed) * len(gpus)
        raise ConfigError(
            f"jobs_at_once={at_once} leaves each job {part.memory / 1e9:.1f} of the {device.memory / 1e9:.1f} GB of "
            f"{device.name}, and a job needs {needed / 1e9:.1f}: give jobs_at_once={fitting}"
        )

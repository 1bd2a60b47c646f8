"""A job of a sweep in a process of its own: what crashes there, or runs out of memory, ends nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gptstar.cli import SHOW_ALL
from gptstar.errors import TrainingError
from gptstar.ranks import LAUNCHER


class Job:
    """A process that does one job.

    Args:
        words: its overrides.
        log: a file for what it says, where others speak at the same time; else it says it here.
        environment: what is set for it beside what is set here.
    """

    def __init__(
        self, script: str, words: Sequence[str], *, log: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        inherited = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR" or SHOW_ALL}
        self._log = log
        with open(log or os.devnull, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, script, *words],
                env=inherited | (environment or {}) | {LAUNCHER: str(os.getpid())},
                stdout=file if log else None,
                stderr=file if log else subprocess.PIPE,
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    def tell(self, number: int) -> None:
        """Hand a signal on."""
        self._process.send_signal(number)

    def wait(self) -> None:
        """Until it has ended.

        Raises:
            TrainingError: it failed; says what it said last.
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
    """What to set for a job so that those beside it are left their part: its own GPUs, and its share of the cores.

    Args:
        place: of the job among those at work, from 0 to `at_once - 1`.
    """
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(each) for each in range(torch.cuda.device_count())]
    if devices:
        each = max(1, len(devices) // at_once)
        first = place * each % len(devices)
        share["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + each])
    return share

"""The process that scores a run's checkpoints, as the run sees it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Self

import torch

from gptstar.errors import ConfigError, TrainingError, in_one_line
from gptstar.evaluation.tasks.background import ERROR_FILE, READY, Job, Order
from gptstar.files import write_text
from gptstar.ranks import LAUNCHER, RENDEZVOUS
from gptstar.training.hardware import Hardware
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record

LOG_FILE = "log.txt"
"""In the folder of an evaluation that was given up: what its process said."""

ATTEMPTS = 2
"""At a checkpoint, before its evaluation is given up: one that runs out of memory does so again."""


class Evaluator:
    """The process that scores checkpoints, one at a time. It ends with the run.

    Args:
        order: what it is told at its start.
        log: a file for what it says.
    """

    def __init__(self, order: Order, log: IO[bytes]) -> None:
        self.order, self._log = order, log
        self._job: Job | None = None
        self._attempts = 0
        self._process = self._started()

    def __enter__(self) -> Self:
        """It has begun already; `check` says whether it can do its work."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever it does."""
        self._end()

    def _started(self) -> subprocess.Popen[str]:
        kept = {key: value for key, value in os.environ.items() if key not in RENDEZVOUS and "TORCHELASTIC" not in key}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gptstar.evaluation.tasks.background"],
            env=kept | {LAUNCHER: str(os.getpid())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        _tell(process, self.order.line)
        return process

    def _end(self) -> str:
        """End the process, if it has not ended; how it did, and what it said last."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = self._said().strip().splitlines()
        return f"{how}: {in_one_line(lines[-1])}" if lines else how

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def check(self) -> None:
        """Wait until the process has read the tasks.

        Raises:
            ConfigError: they can't be scored; as `prepared_tasks`.
            TrainingError: the process died.
        """
        answer = self._process.stdout.readline().strip() if self._process.stdout else ""
        if not answer:
            raise TrainingError(f"the process that evaluates checkpoints died: {self._end()}")
        if answer != READY:
            raise ConfigError(answer)

    def begin(self, job: Job) -> None:
        """Score a checkpoint."""
        self._job, self._attempts = job, 1
        _tell(self._process, job.line)

    def is_idle(self) -> bool:
        """Look after the job in hand: whether it is done, or given up."""
        job = self._job
        if job is None or job.folder.exists():
            self._job = None
            return True
        if self._process.poll() is not None:
            how = self._end()
            self._process = self._started()
            if self._attempts == ATTEMPTS:
                self._give_up(job, f"its process died {ATTEMPTS} times, at last by {how}")
                return True
            self._attempts += 1
            _tell(self._process, job.line)
        return False

    def _give_up(self, job: Job, reason: str) -> None:
        self._job = None
        try:
            job.folder.mkdir(parents=True)
            write_text(job.folder / LOG_FILE, self._said())
            write_text(job.folder / ERROR_FILE, f"{reason}\n")
        except OSError as error:
            raise TrainingError(f"can't write into {job.folder}: {error.strerror}") from error


def _tell(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it died, which is noticed at the next look
            process.stdin.write(f"{line}\n")
            process.stdin.flush()


@contextlib.contextmanager
def evaluator_of(recipe: Recipe, hardware: Hardware, record: Record, *, needed: bool) -> Iterator[Evaluator | None]:
    """Start the process of a run's evaluations, if it has some: on a free GPU if there is one, else on the CPU.

    Beside a run that trains on the CPU it has one thread, elsewhere half of the cores.
    """
    if not needed or record.evaluation.every_n_steps is None or record.trainer.get("fast_dev_run"):
        yield None
        return
    trains_on = hardware.device().type
    device = record.evaluation.device
    if device is None:
        is_free = trains_on == "cuda" and torch.cuda.device_count() > hardware.n_devices
        device = f"cuda:{hardware.n_devices}" if is_free else "cpu"
    threads = 1 if trains_on == "cpu" else max(1, (os.cpu_count() or 1) // 2)
    order = Order(record.evaluation, device, recipe.model.n_ctx, threads, record.plugins)
    with tempfile.TemporaryFile() as log, Evaluator(order, log) as evaluator:
        yield evaluator

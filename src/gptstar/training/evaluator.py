"""The handle of the background process that scores a run's checkpoints."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Self

import torch

from gptstar.checkpoint.kept import ERROR_FILE, is_evaluated
from gptstar.data.preparation.prepare import usable_cores
from gptstar.errors import ConfigError, TrainingError, in_one_line
from gptstar.evaluation.tasks.background import READY, Job, Order
from gptstar.files import write_text
from gptstar.ranks import LAUNCHER, RENDEZVOUS
from gptstar.training.hardware import Hardware
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record

LOG_FILE = "log.txt"
"""The file with the process's output, in the folder of an evaluation that failed."""

ATTEMPTS = 2
"""Attempts at a checkpoint before its evaluation is given up; one that runs out of memory will do so again."""


class Evaluator:
    """A background process that scores checkpoints, one at a time. It ends with the run.

    Args:
        order: the tasks and settings, which the process receives at its start.
        log: a file for the process's output.
    """

    def __init__(self, order: Order, log: IO[bytes]) -> None:
        self.order, self._log = order, log
        self._job: Job | None = None
        self._attempts = 0
        self._process = self._start()

    def __enter__(self) -> Self:
        """Return the running evaluator."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process."""
        self._end()

    def _start(self) -> subprocess.Popen[str]:
        environment = {
            key: value for key, value in os.environ.items() if key not in RENDEZVOUS and "TORCHELASTIC" not in key
        }
        self._log.seek(0)
        self._log.truncate()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gptstar.evaluation.tasks.background"],
            env=environment | {LAUNCHER: str(os.getpid())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        _send(process, self.order.line)
        return process

    def _end(self) -> str:
        """Kill the process with its children, and return how it ended, with the last line of its output."""
        if self._process.poll() is None:  # once it has ended, its id may belong to another process
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        answers: list[str] = []
        if self._process.stdout is not None and not self._process.stdout.closed:
            answers = self._process.stdout.read().splitlines()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = [line for line in (*self._output().splitlines(), *answers) if line.strip() and line != READY]
        return f"{how}: {in_one_line(lines[-1])}" if lines else how

    def _output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def check(self) -> None:
        """Wait until the process has read the tasks.

        Raises:
            ConfigError: the tasks can't be scored; the message is that of `prepared_tasks`.
            TrainingError: the process died.
        """
        answer = self._process.stdout.readline().strip() if self._process.stdout else ""
        if not answer:
            raise TrainingError(f"the process that evaluates checkpoints died: {self._end()}")
        if answer != READY:
            raise ConfigError(answer)

    def begin(self, job: Job) -> None:
        """Have the process score a checkpoint; `poll` says when it is done."""
        if self._process.poll() is not None:
            self._end()
            self._process = self._start()
        self._job, self._attempts = job, 1
        _send(self._process, job.line)

    def poll(self) -> tuple[bool, str]:
        """Return whether the process is idle, and the reason if the last evaluation was given up (else empty)."""
        job = self._job
        has_died = self._process.poll() is not None  # before looking for results, which a dying process may have left
        if job is None or is_evaluated(job.folder):
            self._job = None
            return True, ""
        if not has_died:
            return False, ""
        how, output = self._end(), self._output()
        if self._attempts < ATTEMPTS:
            self._process = self._start()
            self._attempts += 1
            _send(self._process, job.line)
            return False, ""
        self._job, reason = None, f"its process died {ATTEMPTS} times, most recently by {how}"
        with contextlib.suppress(OSError):  # a full disk must not end the training
            job.folder.mkdir(parents=True, exist_ok=True)
            write_text(job.folder / LOG_FILE, output)
            write_text(job.folder / ERROR_FILE, f"{reason}\n")
        return True, reason


def _send(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # the process died, which the next `poll` notices
            process.stdin.write(f"{line}\n")
            process.stdin.flush()


@contextlib.contextmanager
def evaluator_of(recipe: Recipe, hardware: Hardware, record: Record, *, needed: bool) -> Iterator[Evaluator | None]:
    """Start the process that evaluates a run's checkpoints, if the run has any: on a free GPU, or else on the CPU.

    It gets one thread if the run trains on the CPU, otherwise half of the cores.
    """
    if not needed or record.evaluation.every_n_steps is None or record.trainer.get("fast_dev_run"):
        yield None
        return
    trains_on = hardware.device().type
    device = record.evaluation.device
    if device is None:
        is_free = trains_on == "cuda" and torch.cuda.device_count() > hardware.n_devices
        device = f"cuda:{hardware.n_devices}" if is_free else "cpu"
    threads = 1 if trains_on == "cpu" else max(1, usable_cores() // 2)
    order = Order(record.evaluation, device, recipe.model.n_ctx, threads, record.plugins)
    with tempfile.TemporaryFile() as log, Evaluator(order, log) as evaluator:
        yield evaluator

"""The background process that scores a run's checkpoints while the run trains.

The run starts `python -m gptstar.evaluation.tasks.background` and writes lines of JSON to its standard input: first an
`Order`, then a `Job` for each checkpoint. The process answers the order with one line: `ready`, or why the tasks can't
be scored. It answers a job by creating the job's folder, once the results are complete.
"""

import os
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from rich.console import Console

from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.identity import identity, read_with_identity
from gptstar.checkpoint.kept import ERROR_FILE
from gptstar.checkpoint.read import AVERAGED
from gptstar.choices import import_plugins
from gptstar.errors import PREEMPTED, Refusal, in_one_line
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.ranks import end_with_the_launcher

READY = "ready"
"""The answer to an order whose tasks can be scored."""

NICENESS = 10
"""The niceness of evaluations on the CPU, so that training has priority."""

INDIFFERENT = ("study", "every_n_steps", "device", "batch_tokens", "batch_size", "cache")
"""Settings that may differ between the evaluations of a run."""


@dataclass(frozen=True)
class Order:
    """The settings that are the same for all checkpoints of a run.

    Attributes:
        config: the tasks, and how to score them.
        device: PyTorch's name of the device to evaluate on.
        n_ctx: the number of the model's learned positions; None for other kinds of positions.
        threads: the number of threads on a CPU.
        plugins: modules to import, which register the user's own choices.
    """

    config: TasksConfig
    device: str
    n_ctx: int | None
    threads: int
    plugins: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The order as a line of JSON."""
        return TypeAdapter(Order).dump_json(self).decode()

    @property
    def measured(self) -> dict[str, Any]:
        """The settings on which scores depend, as plain values; they must be the same throughout a run."""
        tree: dict[str, Any] = TypeAdapter(TasksConfig).dump_python(self.config, mode="json")
        return {key: value for key, value in tree.items() if key not in INDIFFERENT}


@dataclass(frozen=True)
class Job:
    """A checkpoint to score, and the folder for its results; those of averaged weights go to `FOLDER-averaged`."""

    checkpoint: Path
    folder: Path

    @property
    def line(self) -> str:
        """The job as a line of JSON."""
        return TypeAdapter(Job).dump_json(self).decode()


def main() -> None:
    """Read the order, then score checkpoints until the run closes the input or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run receives the signal too, and ends this process
    signal.signal(PREEMPTED, signal.SIG_IGN)
    end_with_the_launcher()
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # all other output goes into the log
    order = TypeAdapter(Order).validate_json(sys.stdin.readline())
    device = torch.device(order.device)
    if device.type == "cpu":
        torch.set_num_threads(order.threads)
        os.nice(NICENESS)
    try:
        import_plugins(order.plugins)
        from gptstar.evaluation.tasks.suite import evaluate_and_report, prepared_tasks  # imports the harness

        tasks = prepared_tasks(order.config, order.n_ctx)
    except Refusal as error:
        print(in_one_line(error), file=answer, flush=True)
        return
    print(READY, file=answer, flush=True)

    for line in sys.stdin:
        job = TypeAdapter(Job).validate_json(line)
        try:
            parts = _parts(job)
        except Refusal as error:
            partial = _partial(job.folder)
            _explain(error, partial)
            _publish(partial, job.folder)
            continue
        for identity_of_part, checkpoint, folder in parts:
            partial = _partial(folder)
            try:
                evaluate_and_report(identity_of_part, checkpoint, order.config, device, partial, Console(), tasks=tasks)
            except Refusal as error:
                _explain(error, partial)
            _publish(partial, folder)


def _parts(job: Job) -> list[tuple[dict[str, Any], Checkpoint, Path]]:
    """Read the weights to score: averaged ones if there are any, then the last weights, which complete the job.

    The training state is dropped, because the optimizer's state may be twice as large as the model.
    """
    identity_of_last, read = read_with_identity(job.checkpoint)
    parts = [(identity_of_last, replace(read, training=None), job.folder)]
    if read.averaged:
        average = replace(read, weights=read.averaged, averaged={}, is_average=True)
        known = identity(job.checkpoint.with_name(f"{job.checkpoint.name}{AVERAGED}"), average)
        parts.insert(0, (known, replace(average, training=None), averaged_of(job.folder)))
    return parts


def _partial(folder: Path) -> Path:
    """Return an empty path for results that are not complete yet."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def _publish(partial: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _explain(error: Refusal, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).write_text(f"{in_one_line(error)}\n", encoding="utf-8")


def averaged_of(folder: Path) -> Path:
    """Return the folder for the results of averaged weights."""
    return folder.with_name(f"{folder.name}-averaged")


if __name__ == "__main__":
    main()

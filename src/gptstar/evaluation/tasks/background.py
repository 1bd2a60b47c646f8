"""The process that scores a run's checkpoints while the run trains.

The run starts `python -m gptstar.evaluation.tasks.background` and writes lines of JSON to its standard input: first an
`Order`, then a `Job` for each checkpoint. The answer to the order is a line: `ready`, or why the tasks can't be scored.
The answer to a job is its folder, which appears when it is complete.
"""

import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from rich.console import Console

from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.read import AVERAGED
from gptstar.choices import import_plugins
from gptstar.errors import PREEMPTED, Refusal, in_one_line
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.ranks import end_with_the_launcher

READY = "ready"
ERROR_FILE = "error.txt"
"""In a job's folder: why the checkpoint could not be scored."""

NICENESS = 10
"""Of evaluations on a CPU that trains too: training goes first."""


@dataclass(frozen=True)
class Order:
    """What all checkpoints of a run have in common.

    Attributes:
        config: the tasks.
        device: PyTorch's name of where to evaluate.
        n_ctx: how many positions the model's learned positions hold, or None.
        threads: of a CPU.
        plugins: modules to import, which register choices of the user's own.
    """

    config: TasksConfig
    device: str
    n_ctx: int | None
    threads: int
    plugins: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The line that says it."""
        return TypeAdapter(Order).dump_json(self).decode()


@dataclass(frozen=True)
class Job:
    """A checkpoint, and the folder to write its results into; `FOLDER-averaged` for its averaged weights."""

    checkpoint: Path
    folder: Path

    @property
    def line(self) -> str:
        """The line that says it."""
        return TypeAdapter(Job).dump_json(self).decode()


def main() -> None:
    """Take the order, and do its jobs until the run closes the input, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run decides what a signal to both means
    signal.signal(PREEMPTED, signal.SIG_IGN)
    end_with_the_launcher()
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints goes into the log
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

    def score(checkpoint: Path, partial: Path) -> bool:
        """Write results, or why there are none; whether the checkpoint has averaged weights as well."""
        shutil.rmtree(partial, ignore_errors=True)
        try:
            who, read = read_with_identity(checkpoint)
        except Refusal as error:
            _explain(error, partial)
            return False
        try:
            evaluate_and_report(who, read, order.config, device, partial, Console(), tasks=tasks)
        except Refusal as error:
            _explain(error, partial)
        return bool(read.averaged)

    for line in sys.stdin:
        job = TypeAdapter(Job).validate_json(line)
        job.folder.parent.mkdir(exist_ok=True)
        partial, averaged = job.folder.with_name(f".{job.folder.name}.partial"), averaged_of(job.folder)
        if score(job.checkpoint, partial) and not averaged.exists():
            of_average = averaged.with_name(f".{averaged.name}.partial")
            score(job.checkpoint.with_name(f"{job.checkpoint.name}{AVERAGED}"), of_average)
            of_average.rename(averaged)
        partial.rename(job.folder)


def _explain(error: Refusal, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR_FILE).write_text(f"{in_one_line(error)}\n", encoding="utf-8")


def averaged_of(folder: Path) -> Path:
    """Where the results of a job's averaged weights are."""
    return folder.with_name(f"{folder.name}-averaged")


if __name__ == "__main__":
    main()

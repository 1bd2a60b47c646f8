"""Tasks of the harness on a run's checkpoints: another process scores them while the run trains."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from torch import Tensor

from gptstar.checkpoint.kept import EVALUATIONS, evaluation_of, of_step, waiting
from gptstar.errors import ConfigError, Refusal
from gptstar.evaluation.results import Metric, grouped_by, read_tasks
from gptstar.evaluation.tasks.background import ERROR_FILE, Job, averaged_of
from gptstar.training.evaluator import Evaluator
from gptstar.training.metrics import RecordMetrics
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.record import Record

SECONDS_BETWEEN_LOOKS = 1.0

FAR_BEHIND = 3
"""Checkpoints that wait, at which the run says so once."""


MOST_SHOWN = 5
"""Tasks of an evaluation in the run's output; the trackers have all."""


class EvaluateCheckpoints(pl.Callback):
    """Has checkpoints scored while the run trains, and records the scores at their steps, whenever they arrive.

    A checkpoint that waits is kept until it is scored (`kept.prune`), so a run that was killed goes on where it was.

    Args:
        evaluator: the process; None on ranks that are not the first.
        record: the run directory, and how often to evaluate.
        recorder: takes the scores, as `evaluation/TASK/METRIC`; of averaged weights as `averaged/TASK/METRIC`.
    """

    def __init__(self, evaluator: Evaluator | None, record: Record, recorder: RecordMetrics, console: Console) -> None:
        self._evaluator, self._recorder, self._console = evaluator, recorder, console
        self._folder, self._every = record.output, record.evaluation.every_n_steps
        self._looked, self._said_behind = 0.0, False
        self._recorded: set[int] | None = None
        self._last: int | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where an earlier part of the run ended."""
        if self._evaluator is not None:
            self._look(trainer)

    def _take_up(self, step: int) -> set[int]:
        """The steps that an earlier part of the run has recorded; what this part trains again is forgotten."""
        for folder in (self._folder / EVALUATIONS).glob("step-*"):
            if int(folder.name.split("-")[1]) > step:
                shutil.rmtree(folder, ignore_errors=True)
        rows = read_metrics(self._folder)
        return {int(row["step"]) for row in rows if any(key.startswith("evaluation/") for key in row)}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Look now and then for what has arrived, and for what is to be scored next."""
        if self._evaluator is not None and time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self._look(trainer)

    def check(self) -> None:
        """Wait until the process has read the tasks.

        Raises:
            Refusal: as `Evaluator.check`.
        """
        if self._evaluator is not None:
            tasks = ", ".join(self._evaluator.order.config.tasks)
            device = self._evaluator.order.device.replace("cpu", "the CPU")
            self._say(f"evaluates its checkpoints on {tasks} in a process of its own, on {device}")
            self._evaluator.check()

    def finish(self, trainer: pl.Trainer, ended: str | None, is_asked_to_stop: Callable[[], bool]) -> None:
        """Where the run is at its end, wait for what is still to be scored, unless a signal asks to stop.

        Args:
            ended: by which callback, at a step that is scored whatever its number.
        """
        if self._evaluator is None:
            return
        if ended is None and trainer.global_step < trainer.max_steps:
            self._look(trainer)
            return
        self._last = trainer.global_step
        if steps := self._steps(self._last):
            listed = ", ".join(f"{step:,}" for step in steps)
            self._say(f"still to be evaluated: step{'s' * (len(steps) > 1)} {listed}")
        while not (self._look(trainer) or is_asked_to_stop()):
            time.sleep(0.2)

    def _steps(self, done: int) -> list[int]:
        """The steps up to `done` that wait to be scored: those that are due, and a run's last one."""
        steps = {step for step in waiting(self._folder, self._every) if step <= done}
        if self._last is not None and not evaluation_of(self._folder, self._last).exists():
            steps.add(self._last)
        return sorted(steps)

    def _look(self, trainer: pl.Trainer) -> bool:
        """Record what has arrived, and begin the next; whether nothing is left."""
        assert self._evaluator is not None
        self._looked = time.monotonic()
        if self._recorded is None:
            self._recorded = self._take_up(trainer.global_step)
        if not self._evaluator.is_idle():
            return False
        for folder in sorted((self._folder / EVALUATIONS).glob("step-*")):
            number = folder.name.removeprefix("step-")
            if number.isdecimal() and int(number) not in self._recorded:
                self._recorded.add(int(number))
                self._record(trainer, folder, int(number))
        steps = self._steps(trainer.global_step)
        if not steps:
            return True
        if len(steps) > FAR_BEHIND and not self._said_behind:
            self._said_behind = True
            self._say(
                f"{len(steps)} checkpoints wait to be evaluated, and are kept until then: evaluation.limit, a larger "
                "evaluation.every_n_steps or another evaluation.device would make it faster",
                style="yellow",
            )
        self._evaluator.begin(Job(of_step(self._folder, steps[0]), evaluation_of(self._folder, steps[0])))
        return False

    def _record(self, trainer: pl.Trainer, folder: Path, step: int) -> None:
        """Send a step's scores to the trackers and show the first of each task; or say why there are none."""
        scores: dict[str, float] = {}
        for group, results in (("evaluation", folder), ("averaged", averaged_of(folder))):
            if not results.exists():
                continue
            try:
                if (results / ERROR_FILE).exists():
                    raise ConfigError((results / ERROR_FILE).read_text(encoding="utf-8").strip())
                tasks = read_tasks(results).tasks
            except Refusal as error:
                self._say(f"step {step:,} is not evaluated: {error}")
                continue
            scores |= {
                f"{group}/{task.task}/{name_of(metric)}": metric.value for task in tasks for metric in task.metrics
            }
            shown = [task for task in tasks if task.metrics and task.task not in grouped_by(tasks)][:MOST_SHOWN]
            figures = (f"{task.task} {task.metrics[0].name} {task.metrics[0].value:.4g}" for task in shown)
            self._say(f"{group} of step {step:,}: {', '.join(figures)}")
        if scores:
            self._recorder.record(trainer, scores, step)

    def _say(self, line: str, **style: Any) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, **style)


def name_of(metric: Metric) -> str:
    """The name of a metric in trackers: that of clean items, which training never saw, is told apart."""
    return f"{metric.name}_{metric.subset}" if metric.subset else metric.name

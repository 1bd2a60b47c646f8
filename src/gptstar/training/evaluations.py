"""Harness tasks on a run's checkpoints: a background process scores them while the run trains."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from torch import Tensor

from gptstar.checkpoint.kept import (
    ERROR_FILE,
    EVALUATIONS,
    evaluated_steps,
    evaluation_of,
    is_evaluated,
    of_step,
    prune,
    steps_in,
    waiting,
)
from gptstar.errors import ConfigError, Refusal, TrainingError
from gptstar.evaluation.results import Metric, grouped_by, read_tasks
from gptstar.evaluation.tasks.background import Job, averaged_of
from gptstar.files import read_json, write_json
from gptstar.training.checkpoints import SaveCheckpoints
from gptstar.training.evaluator import Evaluator
from gptstar.training.metrics import RecordMetrics
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.record import Record

GROUPS = ("evaluation/", "averaged/")
"""Prefixes of the names of scores: for the last weights, and for averaged weights."""

SETTINGS_FILE = "settings.json"
"""The file in the folder of evaluations that holds the settings common to all of them."""

SECONDS_BETWEEN_LOOKS = 1.0

FAR_BEHIND = 3
"""The number of waiting checkpoints above which the run prints a warning, once."""


MOST_SHOWN = 5
"""The most tasks of an evaluation in the run's output; the trackers receive all."""


class EvaluateCheckpoints(pl.Callback):
    """Lightning callback that has checkpoints scored while the run trains, and records the scores at their steps.

    A checkpoint is kept until it is scored (`kept.prune`), so a resumed run continues with the waiting ones.

    Args:
        evaluator: the process that scores; None on all ranks but the first.
        record: the run directory, and how often to evaluate.
        recorder: the receiver of the scores, as `evaluation/TASK/METRIC`, or `averaged/TASK/METRIC` for averaged
            weights.
        console: the console for the run's output.
    """

    def __init__(self, evaluator: Evaluator | None, record: Record, recorder: RecordMetrics, console: Console) -> None:
        self._evaluator, self._recorder, self._console = evaluator, recorder, console
        self._folder, self._every, self._keep = record.output, record.evaluation.every_n_steps, record.checkpoint_keep
        self._polled, self._has_warned = 0.0, False
        self._recorded: set[int] = set()
        self._given_up: set[int] = set()
        self._stale: dict[Path, int] = {}
        self._step: int | None = None
        self._last: int | None = None

    def check(self, start_step: int) -> None:
        """Wait until the process has read the tasks, and prepare the evaluations of an interrupted run.

        Steps that will be trained again are evaluated again. So are failed evaluations whose checkpoint still exists.

        Args:
            start_step: the step from which the run starts or resumes.

        Raises:
            ConfigError: the tasks can't be scored, or earlier steps of the run were scored with other settings.
            TrainingError: the process died.
        """
        if self._evaluator is None:
            return
        tasks = ", ".join(self._evaluator.order.config.tasks)
        device = self._evaluator.order.device.replace("cpu", "the CPU")
        self._say(f"a background process evaluates the checkpoints on {tasks}, on {device}")
        self._evaluator.check()
        self._check_settings()
        for path, step in evaluated_steps(self._folder).items():
            retried = (path / ERROR_FILE).exists() and of_step(self._folder, step).exists()
            if step > start_step or retried or not is_evaluated(path):
                shutil.rmtree(path, ignore_errors=True)
        for partial in (self._folder / EVALUATIONS).glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        later = (path for path, step in steps_in(self._folder).items() if step > start_step)
        self._stale = {path: path.stat().st_mtime_ns for path in later}
        rows = read_metrics(self._folder)
        scored = (int(row["step"]) for row in rows if any(key.startswith(GROUPS) for key in row))
        self._recorded = {step for step in scored if step <= start_step}

    def _check_settings(self) -> None:
        assert self._evaluator is not None
        settings, path = self._evaluator.order.measured, self._folder / EVALUATIONS / SETTINGS_FILE
        try:
            before = read_json(path)
        except (OSError, ValueError):
            return  # nothing was evaluated yet
        for key, value in settings.items():
            if isinstance(before, dict) and before.get(key, value) != value:
                raise ConfigError(
                    f"evaluation.{key}={value}, but earlier steps of this run were evaluated with {before[key]}: give "
                    f"that, or evaluate its checkpoints with evaluate.py"
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the checkpoints that an interrupted run left unscored."""
        if self._evaluator is not None:
            self._poll(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Every second or so, record the scores that have arrived, and begin the next evaluation."""
        if self._evaluator is not None and time.monotonic() - self._polled > SECONDS_BETWEEN_LOOKS:
            self._poll(trainer)

    def finish(self, trainer: pl.Trainer, ended: str | None, saver: SaveCheckpoints) -> None:
        """At the end of the run, wait for the remaining evaluations, or for a signal to stop.

        Args:
            ended: why a callback ended the run early, if one did; its last step is evaluated in any case.
            saver: the callback that handles signals.
        """
        if self._evaluator is None or (ended is None and trainer.global_step < trainer.max_steps):
            return
        saver.listen()
        self._last = trainer.global_step
        while not self._poll(trainer):
            if saver.is_asked_to_stop:
                return
            time.sleep(0.2)
        prune(self._folder, self._keep, self._every)

    def _due(self, done: int) -> list[int]:
        """Return the steps up to `done` that wait to be scored, and the run's last step."""
        steps = {step for step in waiting(self._folder, self._every) if step <= done}
        if self._last is not None and not is_evaluated(evaluation_of(self._folder, self._last)):
            steps.add(self._last)
        return sorted(step for step in steps - self._given_up if not self._is_stale(of_step(self._folder, step)))

    def _is_stale(self, path: Path) -> bool:
        """Whether a checkpoint predates the resumed run, which will overwrite it."""
        return path in self._stale and path.exists() and path.stat().st_mtime_ns == self._stale[path]

    def _poll(self, trainer: pl.Trainer) -> bool:
        """Record the scores that have arrived, begin the next evaluation, and return whether none is left."""
        assert self._evaluator is not None
        self._polled = time.monotonic()
        is_idle, given_up = self._evaluator.poll()
        if not is_idle:
            return False
        if given_up and self._step is not None:
            self._given_up.add(self._step)
            self._recorded.add(self._step)
            self._say(f"step {self._step:,} is not evaluated: {given_up}")
        for step in sorted({*evaluated_steps(self._folder).values()} - self._recorded):
            if is_evaluated(evaluation_of(self._folder, step)):
                self._recorded.add(step)
                self._record(trainer, evaluation_of(self._folder, step), step)
        steps = self._due(trainer.global_step)
        if not steps:
            return True
        if len(steps) > FAR_BEHIND and not self._has_warned:
            self._has_warned = True
            self._say(
                f"{len(steps)} checkpoints wait to be evaluated, and are kept until then: to speed it up, set "
                "evaluation.limit, a larger evaluation.every_n_steps or another evaluation.device",
                style="yellow",
            )
        if self._last is not None:
            self._say(
                f"evaluating step {steps[0]:,}, {len(steps)} left"
                if len(steps) > 1
                else f"evaluating step {steps[0]:,}"
            )
        self._begin(steps[0])
        return False

    def _begin(self, step: int) -> None:
        assert self._evaluator is not None
        self._step, settings = step, self._folder / EVALUATIONS / SETTINGS_FILE
        with contextlib.suppress(OSError):  # writing the results will fail with a message
            if not settings.exists():
                settings.parent.mkdir(exist_ok=True)
                write_json(settings, self._evaluator.order.measured)
        self._evaluator.begin(Job(of_step(self._folder, step), evaluation_of(self._folder, step)))

    def _record(self, trainer: pl.Trainer, folder: Path, step: int) -> None:
        """Send a step's scores to the trackers and print the first metric of each task, or why there are none."""
        scores: dict[str, float] = {}
        for group, results in zip(GROUPS, (folder, averaged_of(folder)), strict=True):
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
                f"{group}{task.task}/{name_of(metric)}": metric.value for task in tasks for metric in task.metrics
            }
            shown = [task for task in tasks if task.metrics and task.task not in grouped_by(tasks)][:MOST_SHOWN]
            figures = (f"{task.task} {task.metrics[0].name} {task.metrics[0].value:.4g}" for task in shown)
            self._say(
                f"{'averaged weights' if group == GROUPS[1] else 'evaluation'} of step {step:,}: {', '.join(figures)}"
            )
        if not scores:
            return
        try:
            self._recorder.record(trainer, scores, step)
        except TrainingError as error:  # must not stop one rank while the others train; a resumed run records it
            self._say(f"evaluation of step {step:,} is not recorded: {error}")

    def _say(self, line: str, **style: Any) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, **style)


def name_of(metric: Metric) -> str:
    """Return a metric's name in trackers; that of a subset, such as uncontaminated items, gets a suffix."""
    return f"{metric.name}_{metric.subset}" if metric.subset else metric.name

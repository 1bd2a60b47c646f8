"""Tasks of the harness while a model trains."""

import io
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from rich.console import Console
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import Refusal
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.training.callbacks import UserCallbacks
from gptstar.training.checkpoints import is_trial
from gptstar.training.metrics import RecordMetrics
from gptstar.training.module import LanguageModelling

if TYPE_CHECKING:  # the harness takes seconds to import
    from gptstar.evaluation.tasks.offline import Loaded


class EvaluateTasks(pl.Callback):
    """Scores the model every so many steps, and at the last; the run goes on as if nothing had been.

    It is done once the step's checkpoint is saved, so that whatever happens meanwhile costs no step.
    """

    def __init__(
        self,
        config: TasksConfig,
        tokenizer: Tokenizer,
        *,
        name: str,
        callbacks: UserCallbacks,
        recorder: RecordMetrics,
        console: Console,
    ) -> None:
        self._config, self._tokenizer, self._name = config, tokenizer, name
        self._callbacks, self._recorder, self._console = callbacks, recorder, console
        self._tasks: Loaded | None = None
        self._evaluated = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the items, and refuse now what would be refused at the first evaluation.

        Raises:
            Refusal: as `prepared_tasks`.
        """
        from gptstar.evaluation.tasks.suite import prepared_tasks  # the harness takes seconds to import

        assert isinstance(pl_module, LanguageModelling)
        if trainer.is_global_zero:
            self._tasks = prepared_tasks(self._config, pl_module.model.config.n_ctx)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Evaluate if the step before this one is due."""
        every = self._config.every_n_steps
        if trainer.global_step and every is not None and trainer.global_step % every == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate after the last step, or the one at which a callback ended the run."""
        ended = self._callbacks.ending(trainer).get("reason")
        if not is_trial(trainer) and (ended or trainer.global_step == trainer.max_steps):
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the scores as `evaluation/TASK/METRIC`. What can't be scored is said, and ends no run."""
        from gptstar.evaluation.tasks.suite import score

        assert isinstance(pl_module, LanguageModelling)
        if self._evaluated == trainer.global_step:
            return
        self._evaluated = trainer.global_step
        scores: dict[str, Any] = {}
        with self._recorder.paused():
            try:
                scored = score(
                    pl_module.model,
                    self._tokenizer,
                    self._config,
                    checkpoint={"name": self._name, "step": trainer.global_step},
                    console=Console(file=io.StringIO()),  # the run's own bar is on the screen
                    tasks=self._tasks,
                )
            except Refusal as error:
                self._console.print(f"step {trainer.global_step:,} is not evaluated: {error}", soft_wrap=True)
                return
        for task in scored.results.tasks if scored is not None else ():
            for metric in task.metrics:
                name = f"{metric.name}_{metric.subset}" if metric.subset else metric.name
                scores[f"evaluation/{task.task}/{name}"] = metric.value
        if scores:
            self._recorder.record(trainer, scores)

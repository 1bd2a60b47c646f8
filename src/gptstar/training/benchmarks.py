"""Tasks of the harness while a model trains."""

import io
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from torch import Tensor

from gptstar.data.tokenizer import Tokenizer
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.training.metrics import RecordMetrics
from gptstar.training.module import LanguageModelling


class EvaluateTasks(pl.Callback):
    """Scores the model every so many steps, and at the last; the run goes on as if nothing had been."""

    def __init__(
        self, config: TasksConfig, tokenizer: Tokenizer, *, name: str, total_steps: int, recorder: RecordMetrics
    ) -> None:
        self._config, self._tokenizer, self._name = config, tokenizer, name
        self._total_steps, self._recorder = total_steps, recorder

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse now what would be refused at the first evaluation.

        Raises:
            Refusal: as `load_tasks`.
        """
        from gptstar.evaluation.tasks.offline import load_tasks

        if trainer.is_global_zero:
            assert isinstance(pl_module, LanguageModelling)
            config, n_ctx = self._config, pl_module.model.config.n_ctx
            for task in load_tasks(config.tasks, config.data_dir, num_fewshot=config.num_fewshot):
                config.length_for(task.config.task, n_ctx)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Evaluate if it is due, and log the scores as `evaluation/TASK/METRIC`."""
        from gptstar.evaluation.tasks.suite import evaluate_tasks  # the harness takes seconds to import

        assert isinstance(pl_module, LanguageModelling)
        step, every = trainer.global_step, self._config.every_n_steps
        due = every is not None and (step % every == 0 or step == self._total_steps)
        if not (due and pl_module.step_ended(batch_idx)):
            return
        with self._recorder.paused():
            results = evaluate_tasks(
                pl_module.model,
                self._tokenizer,
                self._config,
                checkpoint={"name": self._name, "step": step},
                console=Console(file=io.StringIO()),  # the run's own bar is on the screen
            )
        if results is not None:
            scores = {
                f"evaluation/{task.task}/{metric.name}": metric.value
                for task in results.tasks
                for metric in task.metrics
            }
            self._recorder.record(trainer, scores)

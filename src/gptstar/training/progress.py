"""A progress bar that counts optimizer steps, and where nobody watches, a line now and then."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from gptstar.training.module import LanguageModelling

SECONDS_BETWEEN_LINES = 15.0


class StepProgress(ProgressBar):
    """Steps done, loss, validation loss and time left."""

    def __init__(self, console: Console, total_steps: int) -> None:
        super().__init__()
        self._console, self._total_steps = console, total_steps
        self._live = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._printed = 0.0

    def disable(self) -> None:
        """Lightning asks this of every rank but the first, which alone shows anything here."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, or note the time."""
        if trainer.is_global_zero and self._console.is_terminal:
            self._task = self._live.add_task("", total=self._total_steps, completed=trainer.global_step, status="")
            self._live.start()
        self._printed = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Advance."""
        assert isinstance(pl_module, LanguageModelling)
        if not (pl_module.step_ended(batch_idx) and trainer.is_global_zero):
            return
        status = self._status(pl_module)
        if self._live.live.is_started:
            self._live.update(self._task, completed=trainer.global_step, status=status)
        elif time.monotonic() - self._printed > SECONDS_BETWEEN_LINES or trainer.global_step == self._total_steps:
            self._console.print(f"step {trainer.global_step:,} of {self._total_steps:,}  {status}", highlight=False)
            self._printed = time.monotonic()

    def _status(self, module: LanguageModelling) -> str:
        loss = module.step_metrics.get("train/loss")
        status = "skipped: not finite" if loss is None else f"loss {loss:.3f}"
        if validation := module.validation_metrics.get("validation/loss"):
            status += f"  validation {validation:.3f}"
        return status

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the terminal as it was."""
        if self._live.live.is_started:
            self._live.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        if self._live.live.is_started:
            self._live.stop()

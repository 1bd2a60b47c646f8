"""The metrics of a run: the CSV logger, and the callback that feeds all loggers."""

import contextlib
import csv
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from gptstar.errors import TrainingError
from gptstar.files import whole_file
from gptstar.inference.memory import peak_bytes
from gptstar.training.metrics_csv import METRICS_FILE, read_rows
from gptstar.training.module import LanguageModelling
from gptstar.training.recipe import Recipe
from gptstar.training.throughput import Throughput


class MetricsCSV(Logger):
    """Logger that appends a row to a CSV for each measurement; a column appears with its first value.

    When a run resumes, Lightning's own CSVLogger begins a new file; this one keeps all rows up to the resumed step.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        super().__init__()
        self._path = folder / METRICS_FILE
        rows = [row for row in read_rows(self._path) if float(row["step"]) <= start_step]
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        self._rewrite(rows)

    @property
    def name(self) -> str:
        """The file's name."""
        return METRICS_FILE

    @property
    def version(self) -> str:
        """An empty version: a run directory holds one run."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run directory holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        row = {"step": step, **metrics}
        if set(row) - set(self._columns):
            rows = read_rows(self._path)
            self._columns += [key for key in row if key not in self._columns]
            self._rewrite(rows)
        try:
            with self._path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            raise TrainingError(f"can't write {self._path}: {error.strerror}") from error

    @rank_zero_only
    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if not rows and not self._columns:
            self._path.unlink(missing_ok=True)  # rows of a run that never saved a checkpoint
            return
        try:
            with whole_file(self._path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            raise TrainingError(f"can't write {self._path}: {error.strerror}; the file is unchanged") from error


class RecordMetrics(pl.Callback):
    """Lightning callback that sends the module's metrics to every logger, together with speed and memory.

    Speed is measured in wall time without validation:

    - `tokens_per_second` and `mfu` (the model's floating-point operations over the device's peak) exclude the first
      step at each context length, which may compile. A row lacks both if it covers such steps only.
    - `first_step_seconds` is the duration of such first steps since the previous row.
    - `data_wait` is the share of the time spent waiting for batches.
    - `peak_memory_gib` is the most memory that the process has held.

    Args:
        recipe: the model and the size of a step, which determine the floating-point operations of a step.
        log_every: the number of steps between rows; the first, the last and skipped steps are always logged.
        peak_flops: one device's floating-point operations per second by its data sheet, or None if unknown.

    Attributes:
        first_step_seconds: the duration of the last step if it was the first at its context length, otherwise None.
    """

    def __init__(self, recipe: Recipe, *, log_every: int, peak_flops: float | None) -> None:
        self._recipe, self._log_every, self._peak_flops = recipe, log_every, peak_flops
        self._throughput = Throughput(recipe.batch_tokens, peak_flops)
        self._last_rates: dict[str, float] = {}
        self.first_step_seconds: float | None = None

    def rates(self) -> dict[str, float]:
        """Tokens per second and MFU of the latest row that has them; before the first, those of the steps so far."""
        return self._last_rates or self._throughput.rates()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        peak_flops = self._peak_flops and self._peak_flops * trainer.world_size
        self._throughput = Throughput(self._recipe.batch_tokens, peak_flops)
        self._throughput.start(self._waited(trainer))

    def _waited(self, trainer: pl.Trainer) -> float:
        return getattr(trainer.train_dataloader, "waited", 0.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """At the end of a step, time it, and log a row if one is due."""
        assert isinstance(pl_module, LanguageModelling)
        if not pl_module.step_ended(batch_idx):
            return
        step, length = trainer.global_step, pl_module.length
        due = (
            step % self._log_every == 0 or step in (1, self._recipe.total_steps) or "skipped" in pl_module.step_metrics
        )
        first = self._throughput.is_first(length)
        if (due or first) and trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        flops = self._recipe.model.training_flops(length) * self._recipe.batch_tokens
        seconds = self._throughput.end_step(length, flops, self._waited(trainer))
        self.first_step_seconds = seconds if first else None
        if not due:
            return
        speed = self._throughput.end_interval()
        metrics = pl_module.step_metrics | {"tokens": step * self._recipe.batch_tokens} | speed
        if "tokens_per_second" in speed:
            self._last_rates = speed
        if peak := peak_bytes(trainer.strategy.root_device):
            metrics["peak_memory_gib"] = peak / 2**30
        self.record(trainer, metrics)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._throughput.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the validation, and restart the clock."""
        assert isinstance(pl_module, LanguageModelling)
        self._throughput.unpause()
        self.record(trainer, pl_module.validation_metrics)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock during work that is not training."""
        self._throughput.pause()
        try:
            yield
        finally:
            self._throughput.unpause()

    def record(self, trainer: pl.Trainer, metrics: dict[str, float], step: int | None = None) -> None:
        """Send all finite metrics to every logger, for the given step or else for the last one."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(finite, step=trainer.global_step if step is None else step)

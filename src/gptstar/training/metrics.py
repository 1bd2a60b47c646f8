"""What a run measures: the writer of its CSV, and the callback that feeds all loggers."""

import contextlib
import csv
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from gptstar.errors import TrainingError
from gptstar.training.memory import peak_bytes
from gptstar.training.metrics_csv import METRICS_FILE, read_rows
from gptstar.training.module import LanguageModelling


class MetricsCSV(Logger):
    """One row each time something is measured, appended at once; a column appears with its first value.

    Lightning's own CSVLogger starts the file anew when a run goes on; this one keeps it up to the step it goes on from.
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
        """None is needed: a run directory holds one run."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run directory holds the configuration."""

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
            self._path.unlink(missing_ok=True)  # of a run that had not saved yet
            return
        temporary = self._path.with_name(f".{METRICS_FILE}.partial")
        try:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(rows)
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TrainingError(f"can't write {self._path}: {error.strerror}; it is as it was") from error


class RecordMetrics(pl.Callback):
    """Sends the module's metrics to every logger, with speed and memory beside them: wall time, validation left out.

    `data_wait` is the share of the time that was spent waiting for batches, `mfu` the model's floating-point operations
    over the device's peak, `peak_memory_gib` the most that the process has held.

    Args:
        log_every: steps between rows; the first and the last step are always logged, and those that were skipped.
        batch_tokens: tokens a step, over all ranks.
        flops_per_token: what a training token costs at a context length.
        peak_flops: floating-point operations a second of one device by its data sheet, or None where unknown.
    """

    def __init__(
        self,
        *,
        log_every: int,
        batch_tokens: int,
        total_steps: int,
        flops_per_token: Callable[[int], int],
        peak_flops: float | None,
    ) -> None:
        self._log_every, self._batch_tokens, self._total_steps = log_every, batch_tokens, total_steps
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._restart(trainer)

    def _restart(self, trainer: pl.Trainer) -> None:
        self._since, self._steps = time.perf_counter(), 0
        self._waited = getattr(trainer.train_dataloader, "waited", 0.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """At the end of a step, log it if it is due."""
        assert isinstance(pl_module, LanguageModelling)
        step = trainer.global_step
        if not pl_module.step_ended(batch_idx):
            return
        self._steps += 1
        due = step % self._log_every == 0 or step in (1, self._total_steps)
        if not due and "skipped" not in pl_module.step_metrics:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._since
        tokens_per_second = self._steps * self._batch_tokens / seconds
        waited = getattr(trainer.train_dataloader, "waited", 0.0) - self._waited
        metrics = pl_module.step_metrics | {
            "tokens": step * self._batch_tokens,
            "tokens_per_second": tokens_per_second,
            "data_wait": waited / seconds,
        }
        if peak := peak_bytes(trainer.strategy.root_device):
            metrics["peak_memory_gib"] = peak / 2**30
        if self._peak_flops:
            flops = self._flops_per_token(pl_module.length)
            metrics["mfu"] = tokens_per_second * flops / (self._peak_flops * trainer.world_size)
        self.record(trainer, metrics)
        self._restart(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._since -= time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the validation, and let the clock go on."""
        assert isinstance(pl_module, LanguageModelling)
        self._since += time.perf_counter()
        self.record(trainer, pl_module.validation_metrics)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for what is no training."""
        self._since -= time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter()

    def record(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Send metrics to every logger, but for those that are not finite."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(finite, step=trainer.global_step)

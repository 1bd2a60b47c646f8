"""A progress bar that counts optimizer steps; without a terminal, one line per tenth of the run."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from gptstar.training.metrics import RecordMetrics
from gptstar.training.module import LanguageModelling

LINES = 10
"""The number of progress lines of a run without a terminal, in addition to the one after its first step."""

MOST_SECONDS_BETWEEN_LINES = 1800.0

UPDATES_PER_SECOND = 2.0
"""Redraws of the bar per second. Each redraw blocks the training loop for milliseconds."""

LONG_FIRST_STEP = 5.0
"""Seconds above which a first step is reported on its own line."""


class StepProgress(ProgressBar):
    """Progress display of a run within 80 columns: steps, loss, validation loss, speed and time left.

    A line shows a validation loss, and its step, only if it was measured since the previous line; the bar always shows
    the last one.

    Args:
        recorder: the callback that measures the speed; it must precede this one among the Trainer's callbacks.
        compiles: whether the first step at a context length includes compilation.
    """

    def __init__(self, console: Console, total_steps: int, recorder: RecordMetrics, *, compiles: bool) -> None:
        super().__init__()
        self._console, self._total_steps = console, total_steps
        self._recorder, self._compiles = recorder, compiles
        self._live = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            expand=True,
            refresh_per_second=UPDATES_PER_SECOND,
            speed_estimate_period=600,  # steps may take minutes
        )
        self._shown = 0.0
        self._has_shown = False
        self._validated: int | None = None

    def disable(self) -> None:
        """Do nothing: Lightning calls this on all ranks but the first, and only the first displays anything."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, or start the clock."""
        if trainer.is_global_zero and self._console.is_terminal:
            status = "compiling" if self._compiles else ""
            self._task = self._live.add_task("", total=self._total_steps, completed=trainer.global_step, status=status)
            self._live.start()
        self._shown = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """At the end of a step, advance the display, and report a slow first step."""
        assert isinstance(pl_module, LanguageModelling)
        if not (pl_module.step_ended(batch_idx) and trainer.is_global_zero):
            return
        self._report_first_step(pl_module.length)
        live, step = self._live.live.is_started, trainer.global_step
        if not self._is_due(step, live=live):
            return
        self._shown, self._has_shown = time.monotonic(), True
        status = self._status(pl_module, step, validation=live or self._validated is not None)
        if not live:
            self._validated = None
        if live:
            self._live.update(self._task, completed=step, status=status)
        else:
            line = f"step {step:,} of {self._total_steps:,}  {status}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _is_due(self, step: int, *, live: bool) -> bool:
        """Whether to display a step: always the last one, the others at intervals."""
        since = time.monotonic() - self._shown
        if step == self._total_steps or not self._has_shown:
            return True
        if live:
            return since >= 1 / UPDATES_PER_SECOND
        is_a_tenth = step * LINES // self._total_steps > (step - 1) * LINES // self._total_steps
        return is_a_tenth or since >= MOST_SECONDS_BETWEEN_LINES

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step of the new validation loss."""
        self._validated = trainer.global_step

    def _report_first_step(self, length: int) -> None:
        seconds = self._recorder.first_step_seconds
        if seconds is None or seconds < LONG_FIRST_STEP:
            return
        including = " (compilation included)" if self._compiles else ""
        line = f"first step at context {length} after {seconds:.0f} s{including}"
        self._console.print(line, highlight=False, soft_wrap=True)

    def _status(self, module: LanguageModelling, step: int, *, validation: bool) -> str:
        loss = module.step_metrics.get("train/loss")
        parts = ["skipped: not finite" if loss is None else f"loss {loss:.3f}"]
        if validation and (measured := module.validation_metrics.get("validation/loss")):
            at = "" if self._validated in (None, step) else f" at {self._validated:,}"
            parts.append(f"validation {measured:.3f}{at}")
        rates = self._recorder.rates()
        if tokens_per_second := rates.get("tokens_per_second"):
            parts.append(f"{_short(tokens_per_second)} tok/s")
        if mfu := rates.get("mfu"):
            parts.append(f"MFU {100 * mfu:.0f} %")
        return "  ".join(parts)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the terminal as it was."""
        if self._live.live.is_started:
            self._live.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        if self._live.live.is_started:
            self._live.stop()


def _short(number: float) -> str:
    """Format a number with about three digits: `950`, `3.1k`, `186k`, `1.2M`."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"

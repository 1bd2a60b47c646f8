"""Profiles of optimizer steps: a trace to view, and a table of the slowest operations."""

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, schedule

from gptstar.training.metrics import RecordMetrics
from gptstar.training.module import LanguageModelling

TRACE_FILE, TABLE_FILE = "trace.json.gz", "profile.txt"

UNTOUCHED_STEPS = 2
"""Steps before the profiler starts: the first compiles, and the second may still set up memory and libraries."""

WARM_UP_STEPS = 1
"""Steps that run under the profiler and are discarded, because the profiler starts slowly."""

RECORDED_STEPS = 3
"""The most steps that are profiled; a run that ends earlier has fewer."""

ROWS = 10


class ProfileSteps(pl.Callback):
    """Lightning callback that profiles a few early steps, and writes a trace and a table into the run directory.

    Only the first rank is profiled. A run that ends before the last of these steps leaves neither file.
    """

    def __init__(self, console: Console, recorder: RecordMetrics) -> None:
        self._console, self._recorder = console, recorder
        self._profiler: profile | None = None
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the profiler, if the run is long enough."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        for name in (TRACE_FILE, TABLE_FILE):  # left by an earlier profile
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        before = UNTOUCHED_STEPS + WARM_UP_STEPS
        left = trainer.max_steps - trainer.global_step
        if left <= before:
            self._say(f"nothing is profiled: {left} steps are left, the first {before} are skipped: raise total_steps")
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silence PyTorch's profiler
        on_gpu = trainer.strategy.root_device.type == "cuda"
        steps = min(RECORDED_STEPS, left - before)
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            schedule=schedule(wait=UNTOUCHED_STEPS, warmup=WARM_UP_STEPS, active=steps, repeat=1),
            on_trace_ready=partial(self._conclude, folder=folder, steps=steps, on_gpu=on_gpu),
        )
        self._last_step = before + steps
        self._profiler.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        """Signal the end of a step to the profiler."""
        assert isinstance(pl_module, LanguageModelling)
        if self._profiler is not None and pl_module.step_ended(batch_idx):
            with self._recorder.paused():  # writing a trace takes longer than a step
                self._profiler.step()
            if self._profiler.step_num == self._last_step:
                self._stop()

    def _conclude(self, profiler: profile, *, folder: Path, steps: int, on_gpu: bool) -> None:
        summary = summarise(profiler, steps, on_gpu=on_gpu)
        self._console.print(summary.headline(), highlight=False)
        self._console.print(summary.table(ROWS))
        try:
            profiler.export_chrome_trace(str(folder / TRACE_FILE))
            with (folder / TABLE_FILE).open("w", encoding="utf-8") as file:
                wide = Console(file=file, width=160)  # names of kernels are long
                wide.print(summary.headline(), highlight=False)
                wide.print(summary.table(ROWS))
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            self._say(f"warning: the profile can't be written ({reason}); the run continues")
            return
        self._say(
            f"trace in {folder / TRACE_FILE}: open it at https://ui.perfetto.dev or chrome://tracing; the table is in "
            f"{TABLE_FILE}"
        )

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the profiler if training ended before its last step, for instance by `trainer.max_time`."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the profiler, so that another run in this process can start its own."""
        self._stop()

    def _stop(self) -> None:
        if self._profiler is not None:
            self._profiler.on_trace_ready = None
            self._profiler.stop()
            self._profiler = None


@dataclass(frozen=True)
class Operation:
    """A CPU operation or GPU kernel: its self time, without operations that it calls, and its calls, both per step."""

    name: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class Summary:
    """A summary of the profiled steps.

    Attributes:
        step_seconds: the wall time of a step under the profiler.
        operations: the operations, the longest first.
    """

    steps: int
    step_seconds: float
    on_gpu: bool
    operations: tuple[Operation, ...]

    @property
    def kind(self) -> str:
        """The word for an operation on this device."""
        return "kernel" if self.on_gpu else "operation"

    @property
    def total_seconds(self) -> float:
        """The self time of all operations per step, in seconds."""
        return sum(operation.seconds for operation in self.operations)

    def headline(self) -> str:
        """One line with the time of a step, and the time of all operations, of which `table` shows shares."""
        step, total = 1e3 * self.step_seconds, 1e3 * self.total_seconds
        return f"{self.steps} steps of {step:,.1f} ms while profiled; {self.kind}s take {total:,.1f} ms of each"

    def table(self, rows: int) -> Table:
        """Return a table of the slowest operations; `share` is relative to the time of all operations."""
        table = Table(box=None)
        table.add_column(self.kind)
        for heading in ("share", "ms per step", "calls per step"):
            table.add_column(heading, justify="right", no_wrap=True)
        for each in self.operations[:rows]:
            share, milliseconds = f"{each.seconds / self.total_seconds:.1%}", f"{1e3 * each.seconds:,.2f}"
            name = Text(each.name.removeprefix("void "), no_wrap=True, overflow="ellipsis")
            table.add_row(name, share, milliseconds, f"{each.calls:,.0f}")
        return table


def summarise(profiler: profile, steps: int, *, on_gpu: bool) -> Summary:
    """Sum the profiler's records by operation, and divide by the number of steps."""
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    operations, step_microseconds = [], 0.0
    for event in profiler.key_averages():
        if event.key == "ProfilerStep*" and event.device_type == DeviceType.CPU:
            step_microseconds = event.cpu_time_total
        if event.device_type != device or event.is_user_annotation or event.key == "ProfilerStep*":
            continue
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        operations.append(Operation(event.key, own * 1e-6 / steps, event.count / steps))
    longest_first = tuple(sorted(operations, key=lambda operation: -operation.seconds))
    return Summary(steps, step_microseconds * 1e-6 / steps, on_gpu, longest_first)

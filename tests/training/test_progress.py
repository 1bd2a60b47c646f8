"""Speed, first steps and the progress line."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from gptstar.results import frames
from gptstar.training import throughput
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.progress import StepProgress, _short
from gptstar.training.throughput import Throughput
from support.runs import recorded, run_here

Overrides = Callable[..., list[str]]


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_first_steps_at_each_length_count_in_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    steps = Throughput(batch_tokens=7000, peak_flops=1e6)
    steps.start(waited=11.0)
    clock.now += 31
    assert steps.is_first(128)
    steps.end_step(128, flops=3e5, waited=13.0)
    assert not steps.is_first(128)
    assert steps.rates() == {}
    assert steps.end_interval() == pytest.approx({"first_step_seconds": 31, "data_wait": 2 / 31})

    clock.now += 2
    steps.end_step(128, flops=3e5, waited=13.5)
    steps.pause()
    clock.now += 500  # a validation
    steps.unpause()
    clock.now += 5
    assert steps.end_step(256, flops=5e5, waited=16.0) == 5
    clock.now += 3
    steps.end_step(256, flops=5e5, waited=16.5)
    rates = {"tokens_per_second": 2 * 7000 / 5, "mfu": 8e5 / 5 / 1e6}
    assert steps.rates() == pytest.approx(rates)
    assert steps.end_interval() == pytest.approx(rates | {"first_step_seconds": 5, "data_wait": 3.5 / 10})

    clock.now += 7
    steps.end_step(128, flops=3e5, waited=16.5)
    assert steps.end_interval() == pytest.approx({"tokens_per_second": 1000, "data_wait": 0, "mfu": 3e5 / 7 / 1e6})


@pytest.mark.slow
def test_rows_without_a_rate_leave_it_out(overrides: Overrides, tmp_path: Path) -> None:
    """Also after a resume, whose process compiles again; readers of the record cope with such rows."""
    lengths = ("curriculum.first_length=8", "curriculum.steps=8", "schedule.decay_until=16", "log_every=3")
    run_here(overrides(*lengths, "total_steps=10", "validate_every=5"))
    run_here(overrides(*lengths, "total_steps=16", "validate_every=5"))
    folder = tmp_path / "run"
    assert list(recorded(folder)) == [1, 3, 6, 9, 10, 12, 15, 16]
    # Lengths 8, 16 and 32 begin at steps 1, 5 and 9; 32 again at step 11, where the run goes on.
    assert list(recorded(folder, "first_step_seconds")) == [1, 6, 9, 12]
    assert list(recorded(folder, "tokens_per_second")) == [3, 6, 9, 10, 12, 15, 16]
    run = frames.runs(folder).iloc[0]
    assert run["tokens_per_second"] > 0
    assert 0 < run["hours"] < 1


def test_a_run_of_one_step_has_no_rate(overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from gptstar.cli import main

    run_here(overrides("total_steps=1", "schedule.warmup_steps=0", "schedule.decay_until=null"))
    assert "tok/s" not in capsys.readouterr().out
    assert "tokens_per_second" not in (tmp_path / "run/metrics.csv").read_text()
    main(["runs", str(tmp_path)])
    main(["runs", str(tmp_path), "--json"])
    assert "NaN" not in capsys.readouterr().out
    main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").exists()


def progress(
    *, seconds: float | None = None, rates: dict[str, float] | None = None, compiles: bool = True, steps: int = 51_000
) -> tuple[StepProgress, Console]:
    console = Console(file=io.StringIO(), width=80)
    recorder = SimpleNamespace(first_step_seconds=seconds, rates=lambda: rates or {})
    return StepProgress(console, steps, recorder, compiles=compiles), console


def end_of_step(shown: StepProgress, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptstar.training import progress as module_of_progress

    module = SimpleNamespace(
        step_ended=lambda batch: True,
        length=512,
        step_metrics={"train/loss": 4.30649},
        validation_metrics={"validation/loss": 4.8341},
    )
    monkeypatch.setattr(module_of_progress, "LanguageModelling", SimpleNamespace)
    shown.on_train_batch_end(SimpleNamespace(is_global_zero=True, global_step=step), module, None, None, 0)


def test_the_plain_line_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, console = progress(rates={"tokens_per_second": 186_345.0, "mfu": 0.4821})
    shown.on_validation_end(SimpleNamespace(global_step=51_000), None)
    end_of_step(shown, 51_000, monkeypatch)
    line = console.file.getvalue().rstrip("\n")
    assert line == "step 51,000 of 51,000  loss 4.306  validation 4.834  186k tok/s  MFU 48 %"
    assert len(line) <= 80


@pytest.mark.parametrize(
    ("seconds", "compiles", "line"),
    [
        (31.4, True, "first step at context 512 after 31 s (compilation included)"),
        (31.4, False, "first step at context 512 after 31 s"),
        (1.2, True, ""),
        (None, True, ""),
    ],
)
def test_a_long_first_step_is_reported(
    seconds: float | None, compiles: bool, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, console = progress(seconds=seconds, compiles=compiles)
    shown._has_shown, shown._shown = True, float("inf")  # no line of progress is due
    end_of_step(shown, 1, monkeypatch)
    assert console.file.getvalue().strip() == line


def test_without_a_terminal_there_is_a_line_every_tenth_with_fresh_values(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, console = progress(steps=853)
    for step in range(1, 854):
        end_of_step(shown, step, monkeypatch)
        if step % 100 == 0:
            shown.on_validation_end(SimpleNamespace(global_step=step), None)
    lines = console.file.getvalue().splitlines()
    steps = [int(line.split()[1].replace(",", "")) for line in lines]
    assert steps == [1, 86, 171, 256, 342, 427, 512, 598, 683, 768, 853]
    validated = [step for step, line in zip(steps, lines, strict=True) if "validation" in line]
    assert validated == [171, 256, 342, 427, 512, 683, 768, 853]  # 598 comes after 512 without one between
    assert lines[1].endswith("loss 4.306")
    assert lines[2].endswith("validation 4.834 at 100")


def test_a_long_tenth_has_a_line_every_half_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptstar.training import progress as module_of_progress

    shown, console = progress(steps=100_000)
    now = [0.0]
    monkeypatch.setattr(module_of_progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for step in range(1, 400):
        end_of_step(shown, step, monkeypatch)
        now[0] += 10.0
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1", "181", "361"]


def test_the_last_line_of_a_run_is_its_final_validation(
    overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also where an earlier one was better, which is said beside it."""
    words = overrides("total_steps=12", "validate_every=4", "optimizer.learning_rate=0.02", "schedule=constant")
    run_here([*words, "optimizer.gradient_clipping=null", "schedule.warmup_steps=1"])
    losses = recorded(tmp_path / "run", "validation/loss")
    assert list(losses) == [4, 8, 12]
    line = capsys.readouterr().out.strip().splitlines()[-1]
    best = min(losses, key=losses.__getitem__)
    beside = "" if best == 12 else f" (best: {losses[best]:.3f} at step {best})"
    assert line == f"validation loss {losses[12]:.3f} at step 12{beside}; in {tmp_path / 'run'}"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        *((37.0, "37"), (999.4, "999"), (999.6, "1.0k"), (3149.0, "3.1k"), (9960.0, "10k"), (186_345.0, "186k")),
        *((999_600.0, "1.0M"), (1_234_567.0, "1.2M")),
    ],
)
def test_short_numbers(number: float, shown: str) -> None:
    assert _short(number) == shown


def test_the_first_row_is_written_without_a_rate(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("total_steps=3", "schedule.warmup_steps=1"))
    first, second, *_ = read_metrics(tmp_path / "run")
    assert (first["step"], second["step"]) == (1, 2)
    assert {"train/loss", "first_step_seconds", "tokens", "data_wait", "peak_memory_gib"} <= set(first)
    assert "tokens_per_second" not in first
    assert second["tokens_per_second"] > 0

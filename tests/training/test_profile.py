"""The profile of a few steps."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from gptstar.training.profile import Operation, Summary
from support.runs import run_here

Overrides = Callable[..., list[str]]


def events_named(folder: Path, name: str) -> list[dict]:
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("name") == name]


def test_a_profile_leaves_a_trace_and_a_table(
    overrides: Overrides, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in overrides() if not word.startswith(("total_steps", "validate_every", "schedule"))]
    run_here(["debug=profile", *words])
    said, complaints = capfd.readouterr()
    folder = tmp_path / "run"
    assert complaints == ""
    assert f"trace in {folder}/trace.json.gz: open it at https://ui.perfetto.dev or chrome://tracing" in said
    for step, times in {2: 0, 3: 1, 4: 1, 5: 1, 6: 0}.items():
        assert len(events_named(folder, f"ProfilerStep#{step}")) == times
    headline, titles, *rows = (folder / "profile.txt").read_text().splitlines()
    assert headline.startswith("3 steps of ")
    assert titles.split() == ["operation", "share", "ms", "per", "step", "calls", "per", "step"]
    assert len(rows) == 10
    shares = [float(row.split()[-3].rstrip("%")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 100.5
    calls = {row.split()[0]: int(row.split()[-1].replace(",", "")) for row in rows}
    recorded = len(events_named(folder, "aten::mm"))
    assert calls.get("aten::mm", recorded // 3) == recorded // 3
    assert rows[0].split()[0] in said
    assert not any(row.split()[0].startswith(("ProfilerStep", "Optimizer.step")) for row in rows)


@pytest.mark.slow
def test_a_profile_that_can_not_be_written_ends_no_run(
    overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run_here(overrides("total_steps=3", "schedule.decay_until=24", "trainer.profiler=null"))
    (folder / "trace.json.gz").mkdir()
    run_here(overrides("total_steps=12", "schedule.decay_until=24", "trainer.profiler=trace"))
    assert "warning: the profile can't be written (" in " ".join(capsys.readouterr().out.split())
    assert (folder / "step-000012.ckpt").exists()


def test_a_short_run_profiles_fewer_steps_or_none(
    overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("trainer.profiler=trace", "schedule.warmup_steps=1", "schedule.decay_until=null")
    run_here(overrides(*few, "total_steps=4", output="four"))
    assert (tmp_path / "four/profile.txt").read_text().startswith("1 steps of ")
    capsys.readouterr()
    run_here(overrides(*few, "total_steps=3", output="three"))
    assert "nothing is profiled: 3 steps are left, the first 3 are skipped" in capsys.readouterr().out
    assert not (tmp_path / "three/trace.json.gz").exists()


@pytest.mark.slow
def test_a_run_that_stops_early_leaves_no_profile_and_lets_another_profile(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptstar.training.metrics import RecordMetrics

    words = ("trainer.profiler=trace", "schedule.warmup_steps=1", "schedule.decay_until=null", "total_steps=6")

    def fail(*_: object) -> None:
        raise KeyError("in the fifth step")

    with monkeypatch.context() as broken:
        broken.setattr(RecordMetrics, "on_validation_start", fail)
        with pytest.raises(KeyError):
            run_here(overrides(*words, "validate_every=5", output="broken"))
    assert not (tmp_path / "broken/trace.json.gz").exists()
    run_here(overrides(*words, "validate_every=6", output="whole"))
    assert len(events_named(tmp_path / "whole", "ProfilerStep#4")) == 1


def test_an_unknown_profiler_is_refused(overrides: Overrides, refusal: Callable[..., str]) -> None:
    line = refusal(run_here, overrides("trainer.profiler=tracer"))
    assert "trainer.profiler=tracer is not a profiler: choose one of trace, simple, advanced" in line


@pytest.mark.parametrize("width", [80, 160])
def test_long_names_of_kernels_leave_room_for_the_figures(width: int) -> None:
    kernels = (Operation("void cutlass::" + "long_" * 60, 0.031, 1283), Operation("triton_poi_fused_add[3]", 0.004, 17))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(Summary(3, 0.12, True, kernels).table(10))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert lines[1].startswith(" cutlass::long_")
    assert lines[1].split()[-3:] == ["88.6%", "31.00", "1,283"]
    assert lines[2].split() == ["triton_poi_fused_add[3]", "11.4%", "4.00", "17"]

"""The table of `gptstar runs`: its lines, selection and order."""

import io
import json
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from gptstar.cli import main
from gptstar.errors import ConfigError
from gptstar.results.run import Run
from gptstar.results.selection import Condition, select
from gptstar.results.table import duration, runs_table

LONG = "sweep/optimizer-adamw_learning_rate-{}_with_a_name_that_is_much_too_long_for_a_terminal_seed-{}"


def run(name: str, loss: float = 3.0, **changes: object) -> Run:
    """Return a run as read from a directory."""
    config = {
        "batch_tokens": 1000,
        "total_steps": 51_000,
        "seed": 0,
        "model": {"d_model": 128, "positions": {"kind": "alibi"}},
        "optimizer": {"learning_rate": 1e-3},
    }
    then = datetime.now(UTC) - timedelta(minutes=12)
    row = {"step": 45_000.0, "tokens": 45e6, "tokens_per_second": 12_300.0, "validation/loss": loss}
    fields = {
        "state": "running",
        "reason": "",
        "config": config,
        "about": {},
        "began": then,
        "at": then,
        "rows": (row,),
    }
    return Run(Path("/runs") / name, **(fields | changes))  # type: ignore[arg-type]


def printed(runs: list[Run], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(runs_table(runs))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_each_run_has_one_line_of_80_columns() -> None:
    runs = [run(LONG.format(rate, seed)) for rate in (0.001, 0.0003) for seed in (1, 10)]
    lines = printed(runs, 80)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "each name begins with optimizer-adamw_learning_rate-"
    assert len(lines) == 2 + len(runs)
    names = [re.split(r"  +| running", line)[0] for line in lines[2:]]
    assert len(set(names)) == len(runs)
    assert names[0].startswith("0.001_w")
    assert names[0].endswith("seed-1")
    assert "…" in names[0]
    for line in lines[2:]:
        for cell in ("running", "45k/51k", "45M", "3.000", "12.3k", "1.0 h", "12 min"):
            assert cell in line
    wide = printed(runs, 200)
    assert len(wide) == 1 + len(runs)
    assert "optimizer-adamw_learning_rate-0.001_with_a_name_that_is_much_too_long" in wide[1]


def test_names_that_differ_in_the_middle_stay_apart() -> None:
    runs = [run(f"{'a' * 40}-{number}-{'b' * 12}") for number in range(3)]
    lines = printed(runs, 80)
    names = [line.split()[0] for line in lines[2:]]
    assert len(set(names)) == 3
    assert max(map(len, lines)) <= 80


def test_tags_are_a_column_where_there_are_any() -> None:
    tagged = run("a", config=run("a").config | {"tags": ["paper", "final"]})
    assert "tags" not in printed([run("b")], 80)[0]
    lines = printed([tagged, run("b")], 80)
    assert lines[0].endswith("tags")
    assert lines[1].endswith("paper final")
    assert select([tagged, run("b")], tags=["paper"]) == [tagged]
    assert select([tagged, run("b")], tags=["paper", "draft"]) == []
    assert select([tagged, run("b")], [Condition.parse("tags == final")]) == [tagged]
    assert [each.path.name for each in select([tagged, run("b")], [Condition.parse("tags != final")])] == ["b"]


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (float("inf"), ""),
        (float("nan"), ""),
        (12 / 3600, "12 s"),
        (0.001 / 3600, "0 s"),
        (59.4 / 3600, "59 s"),
        (59.9 / 3600, "1.0 min"),
        (3.42 / 60, "3.4 min"),
        (42 / 60, "42 min"),
        (59.9 / 60, "1.0 h"),
        (2.1, "2.1 h"),
        (30, "30 h"),
        (72, "3.0 d"),
    ],
)
def test_time_is_in_the_unit_that_fits(hours: float, text: str) -> None:
    assert duration(hours) == text


def rates(*values: float) -> list[Run]:
    base = run("x").config
    return [
        run(f"rate-{value}", loss=loss, config=base | {"optimizer": {"learning_rate": value}})
        for value, loss in zip(values, (3.9, 4.1, math.nan, 3.5), strict=False)
    ]


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ("loss < 4", [0, 3]),
        ("loss<4", [0, 3]),
        ("validation_loss >= 4", [1]),
        ("loss != 3.9", [1, 3]),  # a loss that is missing is not compared
        ("optimizer.learning_rate == 1e-3", [0]),
        ("learning_rate > 0.001", [1, 3]),
        ("model.d_model == 128", [0, 1, 2, 3]),
        ("model.positions.kind = alibi", [0, 1, 2, 3]),
        ("state == 'running'", [0, 1, 2, 3]),
        ("state != running", []),
        ("tokens/s > 12_000", [0, 1, 2, 3]),
    ],
)
def test_conditions_hold_for_figures_and_settings(condition: str, left: list[int]) -> None:
    runs = rates(0.001, 0.003, 0.0003, 0.01)
    assert select(runs, [Condition.parse(condition)]) == [runs[number] for number in left]


def test_all_conditions_hold_at_once() -> None:
    runs = rates(0.001, 0.003, 0.0003, 0.01)
    both = [Condition.parse("loss < 4"), Condition.parse("learning_rate < 0.005")]
    assert select(runs, both) == runs[:1]


def test_numbers_are_sorted_as_numbers_and_missing_ones_come_last() -> None:
    runs = rates(0.001, 0.003, 0.0003, 0.01)
    assert select(runs, sort="learning_rate") == [runs[2], runs[0], runs[1], runs[3]]
    assert select(runs, sort="-optimizer.learning_rate") == [runs[3], runs[1], runs[0], runs[2]]
    assert select(runs, sort="loss") == [runs[3], runs[0], runs[1], runs[2]]
    assert select(runs, sort="-loss") == [runs[1], runs[0], runs[3], runs[2]]
    seeds = [run(f"seed-{number}") for number in (10, 9, 2)]
    assert [each.path.name for each in select(seeds, sort="run")] == ["seed-2", "seed-9", "seed-10"]
    rates_in_names = [run(f"rate-{rate}") for rate in ("0.01", "3e-4", "0.003")]
    assert [each.path.name for each in select(rates_in_names, sort="run")] == ["rate-3e-4", "rate-0.003", "rate-0.01"]


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("loss", "'loss' is not a condition: write KEY OP VALUE, such as 'loss < 4'"),
        ("loss < ", "is not a condition"),
        ("__import__('os') == 1", "is not a condition"),
        ("loss < few", "compares with 'few', which is not a number"),
        ("los < 4", "no run has los: choose from loss"),
        ("model.width == 4", "no run has model.width: choose from"),
    ],
)
def test_conditions_that_say_nothing_are_refused(condition: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        select(rates(0.1), [Condition.parse(condition)])
    with pytest.raises(ConfigError, match="no run has optimizer"):
        select(rates(0.1), sort="optimizer")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Make two run directories."""
    for number, name in enumerate(("a", "b")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"batch_tokens: 10\ntotal_steps: 3\nseed: {number}\ntags: [t{number}]\n")
        (folder / "versions.json").write_text('{"data": "x", "command": "python train.py"}')
        (folder / "metrics.csv").write_text(f"step,validation/loss\n3,{4 - number}\n")
        (folder / "status.json").write_text('{"state": "finished", "reason": "", "at": ""}')
    return tmp_path / "runs"


def test_the_command_selects_and_sorts(
    saved: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    def names(*words: str) -> list[str]:
        main(["runs", str(saved), "--json", *words])
        return [Path(each["run"]).name for each in json.loads(capsys.readouterr().out)["runs"]]

    assert names() == ["a", "b"]
    assert names("--sort", "loss") == ["b", "a"]
    assert names("--sort=-loss") == ["a", "b"]
    assert names("--sort=-run") == ["b", "a"]
    assert names("--where", "loss < 4") == ["b"]
    assert names("--where", "loss < 4", "--where", "seed == 0") == []
    assert names("--tag", "t0") == ["a"]
    main(["runs", str(saved / "*"), "--tag", "none"])
    assert capsys.readouterr().out == "no run matches --where and --tag\n"
    assert "no run has los" in refusal(main, ["runs", str(saved), "--sort", "los"])
    shutil.rmtree(saved / "b")
    assert names() == ["a"]


@pytest.mark.slow
def test_a_watched_table_is_redrawn_until_ctrl_c(saved: Path) -> None:
    terminal, inside = pty.openpty()
    command = [sys.executable, "-m", "gptstar", "runs", str(saved), "--watch"]
    process = subprocess.Popen(
        command,
        stdout=inside,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell ignores in the background
    )
    shown = b""
    while b"3.000" not in shown:
        shown += os.read(terminal, 4096)
    (saved / "b/metrics.csv").write_text("step,validation/loss\n3,2.125\n")
    while b"2.125" not in shown:
        shown += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    os.close(terminal)
    os.close(inside)
    assert process.returncode == 0, said
    assert said == b""

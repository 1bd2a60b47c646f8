"""Trackers receive the right data, as read back by their own readers."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record
from wandb.wandb_agent import Agent

from gptstar.training.metrics_csv import read_metrics
from support import ROOT
from support.runs import run_here, run_script

Overrides = Callable[..., list[str]]
SAID = ("train/loss", "validation/loss", "tokens_per_second", "gradient_norm", "learning_rate")


def records(file: Path) -> list[Record]:
    """Read the records of a `.wandb` file, a log in LevelDB's format: 32 KiB blocks; checksum, size, kind, data."""
    data, place, found, parts = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history(file: Path) -> list[dict[str, Any]]:
    rows = [record.history.item for record in records(file) if record.HasField("history")]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_what_the_csv_has(overrides: Overrides, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # of an extra

    run_here(overrides("tracker=tensorboard", "total_steps=6", "schedule.warmup_steps=1"))
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    rows = read_metrics(tmp_path / "run")
    for name in SAID:
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx({int(row["step"]): row[name] for row in rows if name in row}, rel=1e-6)
    hparams = (tmp_path / "run/tensorboard/hparams.yaml").read_text()
    assert "n_heads: 3" in hparams
    assert "fingerprint" in hparams
    assert "commit" in hparams


@pytest.mark.core
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_offline_wandb_run_goes_on_under_its_id(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = overrides("tracker=wandb", "schedule.warmup_steps=1", "schedule.decay_until=6", "checkpoint_every=1")
    run_here([*words, "total_steps=4"])
    run_here([*words, "total_steps=6"])
    parts = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert len({part.name.rpartition("-")[2] for part in parts}) == 1
    steps = [
        [row["trainer/global_step"] for row in history(next(part.glob("*.wandb"))) if "train/loss" in row]
        for part in parts
    ]
    assert steps == [[1, 2, 3, 4], [5, 6]]
    rows = {int(row["step"]): row["train/loss"] for row in read_metrics(tmp_path / "run") if "train/loss" in row}
    told = [row for part in parts for row in history(next(part.glob("*.wandb"))) if "train/loss" in row]
    assert {row["trainer/global_step"]: row["train/loss"] for row in told} == pytest.approx(rows)

    said = capsys.readouterr().out
    command = next(line for line in reversed(said.splitlines()) if "wandb sync" in line)
    assert all(f"'{part}'" in command for part in parts)
    config = {
        item.key: item.value_json
        for record in records(next(parts[0].glob("*.wandb")))
        for item in (record.config.update if record.HasField("config") else record.run.config.update)
    }
    assert json.loads(config["model"])["n_heads"] == 3
    assert "fingerprint" in config["manifest"]
    assert "commit" in config["versions"]


@pytest.mark.slow
def test_wandb_itself_finds_both_parts(overrides: Overrides, tmp_path: Path) -> None:
    """The printed command works, as far as it can without an account."""
    words = overrides("tracker=wandb", "schedule.warmup_steps=1", "schedule.decay_until=6", "checkpoint_every=1")
    run_here([*words, "total_steps=4"])
    run_here([*words, "total_steps=6"])
    parts = [str(part) for part in sorted((tmp_path / "run/wandb").glob("offline-run-*"))]
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert all(Path(part).name in done.stdout + done.stderr for part in parts)


@pytest.mark.slow
def test_an_agent_of_wandbs_sweeps_drives_the_script(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's own agent makes the command and starts it; only the server, which would propose values, is missing."""
    for name, value in {"WANDB_DIR": str(tmp_path), "WANDB_SWEEP_ID": "a1b2c3", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them: monkeypatch puts them back
    guide = (ROOT / "docs/experiments.md").read_text()
    sweep = yaml.safe_load(guide.partition("# sweep.yaml")[2].partition("\n")[2].partition("```")[0])
    agent = Agent(api=None, queue=None, sweep_id="a1b2c3")
    place = sweep["command"].index("${args_no_hyphens}")
    given = overrides("tracker.mode=offline", "total_steps=4", "schedule.warmup_steps=1")
    agent._sweep_command = [*sweep["command"][:place], *given, "${args_no_hyphens}"]
    agent._sweep_command = [sys.executable if word == "python" else word for word in agent._sweep_command]
    told = agent._process_command(
        {
            "type": "run",
            "run_id": "r4nd0m1d",
            "program": str(ROOT / sweep["program"]),
            "args": {"optimizer.learning_rate": {"value": 0.00123}, "seed": {"value": 2}},
        }
    )
    assert "exception" not in told, told
    assert agent._run_processes["r4nd0m1d"].wait(timeout=200) == 0

    parts = list((tmp_path / "run/wandb").glob("offline-run-*"))
    assert [part.name.rpartition("-")[2] for part in parts] == ["r4nd0m1d"]
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["optimizer"]["learning_rate"], config["seed"]) == (0.00123, 2)
    assert [row for row in history(next(parts[0].glob("*.wandb"))) if sweep["metric"]["name"] in row]


def test_wandb_without_a_key_is_refused_before_anything_is_prepared(
    overrides: Overrides, tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    line = refusal(run_here, overrides("tracker=wandb", "tracker.mode=online"))
    assert "tracker=wandb with tracker.mode=online: no API key: run `wandb login`" in line
    assert not (tmp_path / "run").exists()


def run_of(folder: Path) -> Any:
    """Return the metadata of the newest part of an offline wandb run."""
    part = sorted((folder / "wandb").glob("offline-run-*"))[-1]
    return next(record.run for record in records(next(part.glob("*.wandb"))) if record.HasField("run"))


@pytest.mark.slow
def test_the_jobs_of_a_sweep_share_a_group_and_are_named_by_what_varies(overrides: Overrides, tmp_path: Path) -> None:
    words = overrides(
        "total_steps=2", "schedule.warmup_steps=1", "tracker=wandb", "tags=[short,draft]", output="lengths"
    )
    words = [word for word in words if "context_length" not in word]
    done = run_script("train.py", ["-m", *words, "data.context_length=16,32"])
    assert done.returncode == 0, done.stderr
    for length in (16, 32):
        folder = tmp_path / f"lengths/context_length-{length}"
        run = run_of(folder)
        assert (run.run_group, run.display_name) == ("lengths", f"context_length-{length}")
        assert set(run.tags) == {"short", "draft"}
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["tags"] == ["short", "draft"]
        assert config["tracker"]["group"] == "lengths"
    said = done.stdout + done.stderr
    assert said.count("wandb sync") == 2  # one a job, ours; wandb's own names the last part alone
    assert "View run" not in said

    again = run_script("train.py", ["-m", *words, "data.context_length=16,32", "tags=final"])
    assert again.stdout.count("finished already: skipped") == 2


@pytest.mark.slow
def test_the_users_own_group_wins(overrides: Overrides, tmp_path: Path) -> None:
    words = overrides("total_steps=1", "schedule.warmup_steps=0", "tracker=wandb", "tracker.group=mine", output="seeds")
    assert run_script("train.py", ["-m", *words, "seed=3"]).returncode == 0
    run = run_of(tmp_path / "seeds/only")
    assert (run.run_group, run.display_name) == ("mine", "only")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_by_itself_has_no_group(overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(overrides("total_steps=1", "schedule.warmup_steps=0", "tracker=wandb", "name=alone", "tags=one"))
    run = run_of(tmp_path / "run")
    assert (run.run_group, run.display_name, list(run.tags)) == ("", "alone", ["one"])
    *_, sync, last = capsys.readouterr().out.strip().splitlines()
    assert sync.startswith("to upload the whole run to wandb: wandb sync ")
    assert last.startswith("validation loss ")

"""The scripts as a user runs them: in separate processes, killed, with typos, and in sweeps."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.checkpoint.read import read
from gptstar.cli import main
from support import ROOT
from support.runs import assert_same_run, evaluate_here, run_here, run_script, run_script_here

Overrides = Callable[..., list[str]]


def killed_at(step: int, overrides: list[str], folder: Path) -> bool:
    """Start training, kill -9 it as soon as it has recorded a step, and return whether the kill ended it."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None:
        metrics = folder / "metrics.csv"
        if metrics.exists() and f"\n{step}," in metrics.read_text():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode == -signal.SIGKILL


def assert_kills_change_nothing(
    steps: list[int], overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("total_steps=60", "model.dropout=0.1", "validate_every=20", "checkpoint_every=3", "model.d_model=96")
    run_here(overrides(*more, output="whole"))
    kills = [killed_at(step, overrides(*more), tmp_path / "run") for step in steps]
    assert sum(kills) >= max(1, len(kills) // 2)  # a run may be over before it could be killed
    capsys.readouterr()
    run_here(overrides(*more))
    assert "continuing from" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    epochs = read(tmp_path / "run/last.ckpt").training.data["epochs"]
    assert 55 < 60 / epochs < 57


@pytest.mark.slow
def test_kills_change_neither_losses_nor_weights(
    overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kill the run once at a random moment."""
    steps = [random.randrange(9, 56)]  # not before there is a checkpoint to go on from
    print("killed at", steps)
    assert_kills_change_nothing(steps, overrides, tmp_path, capsys)


@pytest.mark.slow
def test_ten_kills_change_nothing(overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = sorted(random.choices(range(2, 58), k=10))
    print("killed at", steps)
    assert_kills_change_nothing(steps, overrides, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_beats_a_bigram_and_reads_beyond_its_context(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, str(ROOT / "train.py"), f"output={tmp_path / 'run'}"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=1100)
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["validation_loss"] < report["bigram_loss"] - 0.4
    assert [result["context_length"] for result in report["lengths"]] == [128, 256, 512, 1024]
    for result in report["lengths"][1:]:
        assert -0.05 < result["change"]["low"] < result["change"]["high"] < 0.05  # neither much harm nor much gain


def test_sigterm_from_outside_saves_and_says_so(overrides: Overrides, tmp_path: Path) -> None:
    more = ("total_steps=100000", "schedule.decay_until=50", "checkpoint_every=100000", "validate_every=100000")
    command = [sys.executable, str(ROOT / "train.py"), *overrides(*more)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run/metrics.csv").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.strip().splitlines()[-1].startswith("error: SIGTERM at step")
    assert (tmp_path / "run/last.ckpt").exists()


@pytest.mark.parametrize(
    ("script", "example"),
    [("train.py", "python train.py output=runs/mine"), ("evaluate.py", "python evaluate.py checkpoint=")],
)
def test_help_shows_every_choice(script: str, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_script_here(script, "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert example in shown
    groups = ("hardware", "evaluation") if script == "evaluate.py" else ("hardware", "model", "optimizer")
    for group in groups:
        choices = ", ".join(sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")))
        assert f"{group}: {choices}" in shown
    assert ("optimizer:" in shown) == (script == "train.py")


def test_mistakes_get_one_line(
    overrides: Overrides, tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean optimizer.learning_rate?" in refusal(run_script_here, "train.py", "optimizer.learning_rat=1")
    assert "did you mean data.context_length" in refusal(run_script_here, "train.py", "-m", "context_length=64,128")
    assert "evaluation.max_tokens" in refusal(run_script_here, "evaluate.py", "max_tokens=3", "checkpoint=x")
    assert "can't read none.ckpt" in refusal(evaluate_here, "checkpoint=none.ckpt")
    assert "does not divide" in refusal(run_here, overrides("data.context_length=48"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("train.py", ["model.d_model=1000000000000000000"], "parameters with gradients and optimizer state need"),
        ("train.py", ["data.loader_workers=100000"], "data.loader_workers=100000 is more than"),
        ("evaluate.py", ["checkpoint=missing"], "missing"),
    ],
)
def test_a_refusal_leaves_no_folder_behind(
    script: str, words: list[str], said: str, tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(run_script_here, script, *words)
    assert list(tmp_path.iterdir()) == []


def test_paths_start_where_the_user_is_even_if_hydra_leaves(
    overrides: Overrides, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(text).parents[1])
    more = ("data.files=*/*.jsonl", "total_steps=3", "schedule.warmup_steps=1", "hydra.job.chdir=true")
    run_script_here("train.py", *overrides(*more))
    assert (tmp_path / "run/last.ckpt").exists()


def test_a_mistake_is_one_line_of_a_process_too_or_a_whole_traceback_for_who_asks(tmp_path: Path) -> None:
    done = run_script("train.py", ["optimizer.learning_rat=1"], cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "did you mean optimizer.learning_rate?" in done.stderr
    done = run_script("train.py", ["data=local"], env=os.environ | {"HYDRA_FULL_ERROR": "1"}, cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


@pytest.mark.core
def test_generate_continues_a_prompt(overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(overrides("total_steps=4", "schedule.warmup_steps=1"))
    words = ["generate", str(tmp_path / "run"), "--prompt", "ba", "--tokens", "9"]
    command = [sys.executable, "-m", "gptstar", *words]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith("ba")
    assert len(text) > 3
    capsys.readouterr()
    main(words)
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("arguments", "waits_for", "does_without"),
    [
        (["train.py", "--help"], "hydra", {"torch", "numpy", "lightning"}),
        (["evaluate.py", "--help"], "hydra", {"torch", "numpy", "lm_eval"}),
        (["-m", "gptstar", "--help"], "argparse", {"torch", "numpy", "hydra"}),
        (["-m", "gptstar", "runs", "--help"], "argparse", {"torch", "numpy", "hydra"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_help_does_not_wait_for_what_it_does_not_show(
    arguments: list[str], waits_for: str, does_without: set[str]
) -> None:
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert waits_for in imported
    assert not does_without & imported
    assert "usage: gptstar" in done.stdout or "train" in done.stdout


def test_the_package_shows_what_it_imports_on_first_use() -> None:
    code = """
import sys, gptstar
names = {"Sampling", "generate", "lm", "load", "results", "stream"}
assert names <= set(dir(gptstar))
assert "torch" not in sys.modules
assert gptstar.results.__name__ == "gptstar.results"
assert "pandas" not in sys.modules
import pydoc
shown = pydoc.plain(pydoc.render_doc(gptstar))
for name in ("class Sampling", "generate(", "lm(", "load(", "stream(", "results (package)"):
    assert name in shown, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it outside the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def test_the_wheel_works_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}

    (installed_conf,) = installed.glob("gptstar/conf")
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert (installed_conf / path.relative_to(ROOT / "conf")).read_text() == path.read_text()
    assert (installed / "gptstar/py.typed").is_file()
    command = [sys.executable, str(installed / "bin/gptstar"), "config", "experiment=gpt127", "data.files=x"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert "127,030,272 parameters" in done.stdout

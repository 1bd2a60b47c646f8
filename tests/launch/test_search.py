"""Searches with Optuna: what they propose, store, and resume."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.results.run import find_runs
from support.runs import child_of, run_script, started, wait_for

Overrides = Callable[..., list[str]]
RANGE = "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))"


def searching(n_trials: int) -> list[str]:
    return ["hydra/sweeper=search", f"hydra.sweeper.n_trials={n_trials}", RANGE]


@pytest.mark.slow
def test_a_search_remembers_its_trials(overrides: Overrides, tmp_path: Path) -> None:
    words = overrides("total_steps=6", "schedule.warmup_steps=1")
    first = run_script("train.py", ["-m", *words, *searching(2)])
    assert first.returncode == 0, first.stderr
    again = run_script("train.py", ["-m", *words, *searching(3)])
    assert again.returncode == 0, again.stderr
    runs = find_runs([tmp_path / "run"])
    assert len(runs) == 3
    best = min(runs, key=lambda run: run.validation_loss)
    rate = best.config["optimizer"]["learning_rate"]
    assert f"best of 3: validation loss {best.validation_loss:.4f} with optimizer.learning_rate={rate}" in again.stdout
    assert all(1e-4 <= run.config["optimizer"]["learning_rate"] <= 1e-1 for run in runs)


@pytest.mark.slow
def test_a_trial_that_was_killed_goes_on(overrides: Overrides, tmp_path: Path) -> None:
    words = overrides("total_steps=60", "schedule.warmup_steps=1", *searching(1))
    process = started(words)
    wait_for(process, tmp_path / "run", "*/step-*.ckpt")
    child = child_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    while Path(f"/proc/{child}").exists():
        time.sleep(0.05)
    (stopped,) = find_runs([tmp_path / "run"])
    assert stopped.state == "stopped"

    again = run_script("train.py", ["-m", *words])
    assert again.returncode == 0, again.stderr
    (finished,) = find_runs([tmp_path / "run"])
    assert (finished.path, finished.state) == (stopped.path, "finished")
    assert "continuing from" in again.stdout


@pytest.mark.slow
def test_a_search_over_nothing_is_refused(overrides: Overrides) -> None:
    done = run_script("train.py", ["-m", *overrides("hydra/sweeper=search")])
    assert done.returncode == 1
    assert "hydra/sweeper=search: give a range" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

"""The launcher for SLURM on a real one-node SLURM, which the tests start: needs root, slurm-wlm and munge."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptstar.checkpoint.read import read
from support import ROOT
from support.runs import assert_same_run, on, run_script

Overrides = Callable[..., list[str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "setpriv"))),
        reason="a SLURM can't be started here: it takes root, and apt-get install slurm-wlm munge",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = Path("/tmp") / f"gptstar-slurm-{os.getpid()}"  # munge wants no private folder above its socket
    script = ["bash", str(ROOT / "tests/launch/one_machine_slurm.sh")]
    with pytest.MonkeyPatch.context() as environment:
        try:
            started = subprocess.run([*script, "start", str(folder)], capture_output=True, text=True, check=True)
            environment.setenv("SLURM_CONF", started.stdout.strip())
            yield
            subprocess.run(["scancel", "--me"], check=False)
        finally:
            subprocess.run([*script, "stop", str(folder)], check=True)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for(there: Callable[[], object], submission: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert submission.poll() is None, submission.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_preempted_job_is_requeued_and_ends_as_one_that_was_left_alone(
    ranks: int, slurm: None, overrides: Overrides, tmp_path: Path
) -> None:
    more = ["total_steps=400", "checkpoint_every=1000", "validate_every=200"]
    more += on(2, "ddp") if ranks == 2 else ["hardware=cpu"]
    whole = run_script("train.py", overrides(*more, output="whole"))
    assert whole.returncode == 0, whole.stderr

    command = [sys.executable, str(ROOT / "train.py"), *overrides(*more, "launcher=slurm")]
    submission = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "run/metrics.csv"
    wait_for(lambda: metrics.exists() and "\n50," in metrics.read_text(), submission)
    job = said("squeue", "--noheader", "--format=%A")
    said("scancel", "--signal=USR2", job)
    wait_for(lambda: "Restarts=1" in said("scontrol", "show", "job", job), submission)
    assert 50 <= read(tmp_path / "run/last.ckpt").training.step < 400
    wait_for(lambda: "JobState=PENDING" in said("scontrol", "show", "job", job), submission)
    said("scontrol", "update", f"JobId={job}", "StartTime=now")  # a requeued job waits for two minutes
    output, _ = submission.communicate(timeout=200)
    assert submission.returncode == 0, output
    assert "submitting to SLURM" in output
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert any("continuing from" in log.read_text() for log in (tmp_path / "run/.slurm").glob("*/*.out"))


def test_a_sweep_is_an_array_of_jobs(slurm: None, overrides: Overrides, tmp_path: Path) -> None:
    done = run_script("train.py", ["-m", *overrides("seed=0,1", "launcher=slurm", "hardware=cpu", "total_steps=6")])
    assert done.returncode == 0, done.stdout + done.stderr
    for seed in (0, 1):
        assert read(tmp_path / f"run/seed-{seed}/last.ckpt").training.settings["seed"] == seed
    assert len(list((tmp_path / "run/.slurm").glob("*_[01]"))) == 2


def test_a_refusal_reaches_the_one_who_submitted(slurm: None, overrides: Overrides) -> None:
    done = run_script("train.py", overrides("launcher=slurm", "data.files=/nowhere/*.jsonl"))
    assert done.returncode != 0
    assert "/nowhere/*.jsonl" in done.stderr

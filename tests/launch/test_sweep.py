"""Sweeps: the names of jobs, and a single command that runs, resumes and repairs them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.errors import ConfigError
from gptstar.launch import job
from gptstar.launch.job import check_shared_gpu, share_of_machine
from gptstar.launch.names import check_values_differ, job_name, swept_over
from gptstar.results.run import Run
from gptstar.training.hardware import Hardware
from gptstar.training.memory import GPU_PART
from gptstar.training.plan import known_device
from support import ROOT
from support.runs import child_of, recorded, run_here, run_script, started, wait_for

Overrides = Callable[..., list[str]]


def test_jobs_are_named_by_what_differs() -> None:
    words = [
        "-m",
        "data.context_length=64,128",
        "seed=range(0,3)",
        "total_steps=5",
        "model=tiny,gpt127",
        "data.files=a/*",
    ]
    overrides = ["data.context_length=64", "seed=1", "total_steps=5", "model=tiny", "data.files=a/*"]
    assert job_name(overrides, None, words) == "context_length-64_seed-1_model-tiny"
    arms = ["-m", "seed=2,3", "experiment=fast_small,recipe/budget_35"]
    assert job_name(["seed=2", "experiment=recipe/budget_35"], None, arms) == "seed-2_experiment-recipe-budget_35"
    assert job_name(["data.files=a/b c.txt"], None, ["data.files=a/b c.txt,d.txt"]) == "files-a-b-c.txt"
    clashing = {job_name([f"data.files={each}"], None, ["data.files=a/b,a-b,c/d"]) for each in ("a/b", "a-b", "c/d")}
    assert len(clashing) == 3
    assert "files-c-d" in clashing
    assert job_name(["seed=1"], None, ["-m", "seed=1"]) == "only"
    params = {"model.positions": "alibi,none", "seed": "0,1"}
    assert job_name(["model.positions=none", "seed=1"], params, []) == "positions-none_seed-1"
    assert job_name(["model.positions=none", "seed=1"], params, ["seed=1"]) == "positions-none"


def test_a_value_that_is_given_twice_is_refused() -> None:
    check_values_differ(swept_over(["seed=0,1", "data.files=a/b,a-b"], {"model.positions": "alibi,none"}))
    with pytest.raises(ConfigError, match="seed=0 is given twice, and its jobs would share a folder"):
        check_values_differ(swept_over(["model=tiny,gpt127", "seed=0,1,0"], None))


@pytest.mark.slow
def test_a_sweep_survives_a_job_that_is_refused_and_runs_nothing_twice(overrides: Overrides, tmp_path: Path) -> None:
    words = [each for each in overrides("total_steps=4", "schedule.warmup_steps=1") if "context_length" not in each]
    done = run_script("train.py", ["-m", *words, "data.context_length=48,32"])
    assert done.returncode == 1
    assert "data.context_length=48 does not divide" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: 1 of 2 jobs failed, such as context_length-48: ")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["context_length-32"]
    before = (tmp_path / "run/context_length-32/metrics.csv").stat().st_mtime_ns
    assert sorted(recorded(tmp_path / "run/context_length-32")) == [1, 2, 3, 4]

    run_here([*words, "data.context_length=16", f"output={tmp_path / 'run/context_length-16'}"])
    again = run_script("train.py", ["-m", *words, "data.context_length=32,16"])
    assert again.returncode == 0, again.stderr
    assert "job 1 of 2: context_length-32" in again.stdout
    assert again.stdout.count("finished already: skipped") == 2
    assert "next: gptstar report" in again.stdout
    assert (tmp_path / "run/context_length-32/metrics.csv").stat().st_mtime_ns == before
    assert Run.read(tmp_path / "run/context_length-16").state == "finished"


@pytest.mark.slow
def test_sigterm_ends_a_sweep(overrides: Overrides, tmp_path: Path) -> None:
    more = ("total_steps=100000", "schedule.decay_until=50", "checkpoint_every=100000", "validate_every=100000")
    command = [sys.executable, str(ROOT / "train.py"), "-m", *overrides(*more), "seed=0,1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "run").glob("*/metrics.csv")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert len(list((tmp_path / "run").glob("*/last.ckpt"))) == 1
    (job,) = [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    assert Run.read(job).state == "stopped"
    assert "SIGTERM at step" in Run.read(job).reason
    said = [line for line in errors.splitlines() if line.startswith("error: SIGTERM")]
    assert len(said) == 2  # the job's and the sweep's
    assert all(line.endswith(f"to continue, repeat the command with output={tmp_path / 'run'}") for line in said)


@pytest.mark.slow
def test_a_job_that_crashes_ends_no_other_and_goes_on_next_time(overrides: Overrides, tmp_path: Path) -> None:
    words = overrides("total_steps=60", "schedule.warmup_steps=1")
    process = started([*words, "seed=0,1"])
    wait_for(process, tmp_path / "run", "*/step-*.ckpt")
    os.kill(child_of(process.pid), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: 1 of 2 jobs failed, such as seed-0: killed by SIGKILL" in errors
    assert [Run.read(tmp_path / f"run/seed-{seed}").state for seed in (0, 1)] == ["killed", "finished"]

    again = run_script("train.py", ["-m", *words, "seed=0,1"])
    assert again.returncode == 0, again.stderr
    assert "continuing from" in again.stdout
    alone = run_script("train.py", overrides("total_steps=60", "schedule.warmup_steps=1", "seed=0", output="alone"))
    assert alone.returncode == 0, alone.stderr
    assert recorded(tmp_path / "run/seed-0") == recorded(tmp_path / "alone")


@pytest.mark.slow
def test_a_sweep_that_is_killed_takes_its_job_with_it(overrides: Overrides, tmp_path: Path) -> None:
    words = overrides("total_steps=100000", "schedule.decay_until=50", "checkpoint_every=100000")
    process = started([*words, "seed=0,1"])
    metrics = wait_for(process, tmp_path / "run", "*/metrics.csv")
    child = child_of(process.pid)

    other = run_script("train.py", ["-m", *words, "seed=0,1"])
    assert other.returncode == 1
    assert other.stderr.strip().splitlines()[-1].endswith("is in use by another sweep: wait for it, or choose another")

    process.kill()
    process.communicate(timeout=60)
    for _ in range(300):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
    assert Run.read(metrics.parent).state == "stopped"  # it had saved


@pytest.mark.slow
def test_another_configuration_is_no_continuation(overrides: Overrides, tmp_path: Path) -> None:
    words = overrides("total_steps=4", "schedule.warmup_steps=1")
    assert run_script("train.py", ["-m", *words, "seed=0,1"]).returncode == 0
    changed = run_script("train.py", ["-m", *words, "seed=0,1", "optimizer.weight_decay=0.5"])
    assert changed.returncode == 1
    assert "optimizer.weight_decay (checkpoint: 0.1, now: 0.5)" in changed.stderr
    assert Run.read(tmp_path / "run/seed-0").state == "finished"


@pytest.mark.slow
def test_two_jobs_at_a_time_share_the_machine(overrides: Overrides, tmp_path: Path) -> None:
    """One of three jobs is killed while two are running; the third still starts."""
    words = [*overrides("total_steps=60", "schedule.warmup_steps=1"), "jobs_at_once=2", "seed=0,1,2"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, str(ROOT / "train.py"), "-m", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for seed in (0, 1):
        wait_for(process, tmp_path / "run", f"seed-{seed}/step-*.ckpt")
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    threads = f"OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // 2)}"
    assert all(threads in Path(f"/proc/{child}/environ").read_text().split("\0") for child in children)
    os.kill(children[0], signal.SIGKILL)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "error: 1 of 3 jobs failed, such as seed-" in errors
    states = [Run.read(tmp_path / f"run/seed-{seed}").state for seed in range(3)]
    assert sorted(states) == ["finished", "finished", "killed"]
    assert states[2] == "finished"
    assert "step 60 of 60" not in said  # it stands in the jobs' own files
    assert "step 60 of 60" in (tmp_path / "run/seed-2.txt").read_text()

    again = run_script("train.py", ["-m", *words])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished already: skipped") == 2
    alone = run_script("train.py", overrides("total_steps=60", "schedule.warmup_steps=1", "seed=0", output="alone"))
    assert alone.returncode == 0, alone.stderr
    assert recorded(tmp_path / "run/seed-0") == recorded(tmp_path / "alone")


@pytest.mark.slow
def test_a_signal_reaches_all_jobs_at_work(overrides: Overrides, tmp_path: Path) -> None:
    more = ("total_steps=100000", "schedule.decay_until=50", "checkpoint_every=100000", "validate_every=100000")
    process = started([*overrides(*more), "seed=0,1,2", "jobs_at_once=2"])
    for seed in (0, 1):
        wait_for(process, tmp_path / "run", f"seed-{seed}/metrics.csv")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert [Run.read(tmp_path / f"run/seed-{seed}").state for seed in (0, 1)] == ["stopped", "stopped"]
    assert not (tmp_path / "run/seed-2").exists()


@pytest.mark.parametrize("words", [["jobs_at_once=0"], ["jobs_at_once=-3"]])
def test_no_jobs_at_once_are_none(words: list[str], overrides: Overrides, refusal: Callable[..., str]) -> None:
    assert f"{words[0]} is below 1" in refusal(run_here, overrides(*words))


def test_jobs_that_share_a_gpu_are_told_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shares = [share_of_machine(place, 6) for place in range(6)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["3", "5", "3", "5", "3", "5"]
    assert {share[GPU_PART] for share in shares} == {f"{1 / 3:g}"}
    assert GPU_PART not in share_of_machine(1, 2)
    assert share_of_machine(1, 1)["CUDA_VISIBLE_DEVICES"] == "3,5"


def test_jobs_that_do_not_fit_a_gpu_together_are_refused_before_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(job, "this_device", lambda _: known_device("H100"))
    config = TrainConfig.parse(compose("train", ["experiment=gpt303", "data.shards=x", "hardware.precision=bf16"]))
    monkeypatch.setattr(Hardware, "device", lambda _: torch.device("cuda"))
    for jobs in (1, 2, 5):  # five take smaller micro-batches
        check_shared_gpu(config, jobs)
    with pytest.raises(
        ConfigError, match=r"jobs_at_once=16 leaves each job 5.0 of the 80.0 GB of H100, and a job needs"
    ):
        check_shared_gpu(config, 16)
    with pytest.raises(ConfigError) as refused:
        check_shared_gpu(config, 16)
    said = int(str(refused.value).rpartition("jobs_at_once=")[2])
    check_shared_gpu(config, said)
    assert said > 5

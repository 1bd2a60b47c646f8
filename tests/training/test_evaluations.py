"""Background evaluation of a run's checkpoints."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar import results
from gptstar.checkpoint.kept import evaluation_of, of_step, prune, waiting
from gptstar.cli import main
from gptstar.evaluation.results import read_tasks
from gptstar.training import evaluator
from gptstar.training.metrics_csv import read_metrics
from support import ROOT
from support.runs import evaluate_here, recorded, run_here, run_script
from support.text import write_tasks_files

Overrides = Callable[..., list[str]]

TASKS = ("evaluation.tasks=[piqa,wikitext]", "evaluation.limit=4")


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def evaluating(overrides: Overrides, task_files: Path) -> Overrides:
    def build(*more: str, output: str = "run") -> list[str]:
        options = ("evaluation.every_n_steps=10", f"evaluation.data_dir={task_files}", *TASKS)
        return overrides(*options, *more, output=output)

    return build


def scores(folder: Path) -> dict[int, dict[str, float]]:
    """Return the scores that a run recorded, by step, and check that each step has one row."""
    rows = [row for row in read_metrics(folder) if any("evaluation/" in key for key in row)]
    steps = [int(row["step"]) for row in rows]
    assert steps
    assert steps == sorted(set(steps))
    return {step: {key: row[key] for key in row if "evaluation/" in key} for step, row in zip(steps, rows, strict=True)}


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Kill the background process a number of times when it receives a checkpoint."""

    def kill(times: int) -> list[int]:
        killed: list[int] = []
        tell = evaluator._send

        def tell_and_kill(process: subprocess.Popen[str], line: str) -> None:
            tell(process, line)
            if '"folder"' in line and len(killed) < times:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

        monkeypatch.setattr(evaluator, "_send", tell_and_kill)
        return killed

    return kill


def test_a_run_evaluates_as_it_goes_and_is_the_same_run(
    overrides: Overrides, evaluating: Overrides, tmp_path: Path
) -> None:
    run_here(overrides(output="without"))
    run_here(evaluating(output="with"))
    scored = scores(tmp_path / "with")
    assert sorted(scored) == [10, 20, 24]
    assert all(0 <= row["evaluation/piqa/acc"] <= 1 for row in scored.values())
    assert scored[24]["evaluation/wikitext/bits_per_byte"] < scored[10]["evaluation/wikitext/bits_per_byte"]
    for name in ("train/loss", "validation/loss", "gradient_norm"):
        assert recorded(tmp_path / "with", name) == recorded(tmp_path / "without", name)


@pytest.mark.slow
def test_scores_are_those_of_evaluate_py(evaluating: Overrides, task_files: Path, tmp_path: Path) -> None:
    run_here(evaluating("checkpoint_keep=9"))
    for step in (10, 24):
        options = (f"evaluation.data_dir={task_files}", *TASKS, "hardware=cpu", f"output={tmp_path / str(step)}")
        evaluate_here(f"checkpoint={of_step(tmp_path / 'run', step)}", *options)
        here, there = read_tasks(tmp_path / str(step)), read_tasks(evaluation_of(tmp_path / "run", step))
        assert [task.metrics for task in there.tasks] == [task.metrics for task in here.tasks]
        assert there.checkpoint == here.checkpoint


@pytest.mark.slow
def test_averaged_weights_are_scored_beside_the_last(evaluating: Overrides, tmp_path: Path) -> None:
    run_here(evaluating("averaging=ema", "averaging.decay=0.9"))
    last, averaged = (recorded(tmp_path / "run", f"{group}/wikitext/bits_per_byte") for group in
                      ("evaluation", "averaged"))  # fmt: skip
    assert last.keys() == averaged.keys() == {10, 20, 24}
    assert all(averaged[step] != last[step] for step in last)
    names = {read_tasks(each).checkpoint["name"] for each in (tmp_path / "run/evaluations").glob("step-*")}
    assert names == {f"run/step-0000{step}{after}" for step in last for after in ("", ":averaged")}


@pytest.mark.slow
def test_the_api_finds_them(evaluating: Overrides, tmp_path: Path) -> None:
    run_here(evaluating())
    frame = results.tasks(tmp_path / "run")
    assert set(frame["checkpoint"]) == {f"run/step-0000{step}" for step in (10, 20, 24)}
    assert set(frame["run"]) == {"run"}
    assert set(frame["tokens"]) == {256 * step for step in (10, 20, 24)}
    main(["report", str(tmp_path / "run")])
    benchmarks = (tmp_path / "run/report/report.md").read_text().partition("## Benchmarks")[2]
    assert "![Benchmarks]" in benchmarks


@pytest.mark.slow
def test_a_process_that_dies_is_started_again(evaluating: Overrides, dying, tmp_path: Path) -> None:
    killed = dying(1)
    run_here(evaluating())
    assert len(killed) == 1
    assert sorted(scores(tmp_path / "run")) == [10, 20, 24]


@pytest.mark.slow
def test_a_checkpoint_at_which_it_always_dies_is_given_up(
    evaluating: Overrides, dying, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying(evaluator.ATTEMPTS)
    run_here(evaluating())
    assert "step 10 is not evaluated: its process died 2 times, most recently by SIGKILL" in capsys.readouterr().out
    assert sorted(scores(tmp_path / "run")) == [20, 24]


@pytest.mark.slow
def test_a_killed_trainer_loses_no_evaluation(evaluating: Overrides, tmp_path: Path) -> None:
    """The run is killed repeatedly, each time a checkpoint waits for its evaluation."""
    run_here(evaluating(output="whole"))
    for due in (10, 20, 24):
        words = [sys.executable, str(ROOT / "train.py"), *evaluating("checkpoint_keep=1")]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as run:
            while not of_step(tmp_path / "run", due).exists():
                assert run.poll() is None
                time.sleep(0.01)
            run.kill()
    assert not evaluation_of(tmp_path / "run", 24).exists()
    run_here(evaluating("checkpoint_keep=1"))
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")


@pytest.mark.slow
def test_what_failed_is_tried_again_and_settings_stay(
    evaluating: Overrides, dying, refusal: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying(2 * evaluator.ATTEMPTS)  # of the first two steps
    run_here(evaluating("checkpoint_keep=9"))
    assert sorted(scores(tmp_path / "run")) == [24]
    assert "evaluation.limit=3, but earlier steps" in refusal(run_here, evaluating("evaluation.limit=3"))
    (evaluation_of(tmp_path / "run", 10) / "error.txt").unlink()  # as if a full disk had kept it from being written
    run_here(evaluating("checkpoint_keep=9"))
    assert sorted(scores(tmp_path / "run")) == [10, 20, 24]


@pytest.mark.slow
def test_a_folder_that_can_not_be_written_ends_no_run(
    evaluating: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(evaluating("total_steps=5", "schedule.decay_until=24", "evaluation.every_n_steps=null"))
    (tmp_path / "run/evaluations").write_text("in the way")
    run_here(evaluating())
    assert "step 10 is not evaluated" in capsys.readouterr().out
    assert sorted(recorded(tmp_path / "run"))[-1] == 24


@pytest.mark.slow
def test_older_checkpoints_of_later_steps_are_not_evaluated(evaluating: Overrides, tmp_path: Path) -> None:
    """If the newest checkpoint is damaged, a run resumes from an earlier one, and writes later ones again."""
    run_here(evaluating(output="whole"))
    run_here(evaluating("checkpoint_keep=9", "evaluation.every_n_steps=null"))
    for step in (20, 24):
        damaged = of_step(tmp_path / "run", step)
        damaged.write_bytes(damaged.read_bytes()[:5000])
    run_here(evaluating("checkpoint_keep=9", "report=true"))
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")


@pytest.mark.slow
def test_results_of_steps_that_are_trained_again_are_made_again(evaluating: Overrides, tmp_path: Path) -> None:
    run_here(evaluating())
    before = scores(tmp_path / "run")
    for step in (20, 24):
        of_step(tmp_path / "run", step).unlink()
    for link in ("last.ckpt", "best.ckpt"):
        (tmp_path / "run" / link).unlink()
    (evaluation_of(tmp_path / "run", 24) / "results.json").write_text("of other weights")
    run_here(evaluating("report=true"))
    assert scores(tmp_path / "run") == before


def test_what_waits_is_kept(tmp_path: Path) -> None:
    for step in range(5, 45, 5):
        of_step(tmp_path, step).touch()
    evaluation_of(tmp_path, 10).mkdir(parents=True)
    assert waiting(tmp_path, 10) == [10, 20, 30, 40]  # an empty folder is no evaluation
    (evaluation_of(tmp_path, 10) / "results.json").touch()
    assert waiting(tmp_path, 10) == [20, 30, 40]
    prune(tmp_path, 2, 10)
    assert {each.name for each in tmp_path.glob("*.ckpt")} == {f"step-0000{step}.ckpt" for step in (20, 30, 35, 40)}
    prune(tmp_path, 2)
    assert {each.name for each in tmp_path.glob("*.ckpt")} == {"step-000035.ckpt", "step-000040.ckpt"}


def test_a_run_refuses_tasks_before_its_first_step(
    evaluating: Overrides, refusal: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    assert "piqa" in refusal(run_here, evaluating(f"evaluation.data_dir={tmp_path / 'tasks'}"))
    assert [each.name for each in tmp_path.iterdir()] == ["tasks"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_train_as_without_evaluations(strategy: str, overrides, evaluating, tmp_path: Path) -> None:
    """Two ranks have bitwise the same losses with and without evaluations, and the scores of one process."""
    two = [f"hardware={strategy}", "hardware.devices=2", "hardware.accelerator=cpu", "hardware.micro_batch_size=2"]
    for words in (overrides(*two, output="without"), evaluating(*two, output="with")):
        done = run_script("train.py", words)
        assert done.returncode == 0, done.stderr
    for name in ("train/loss", "validation/loss", "gradient_norm"):
        assert recorded(tmp_path / "with", name) == recorded(tmp_path / "without", name)
    run_here(evaluating(output="one"))
    one, several = scores(tmp_path / "one"), scores(tmp_path / "with")
    assert one.keys() == several.keys()
    for step, row in one.items():
        assert several[step] == pytest.approx(row, rel=1e-4)

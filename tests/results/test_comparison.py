"""`compare`: what of several evaluations of a run is compared, what is left out, and that this is said."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from gptstar import results
from gptstar.cli import main
from gptstar.errors import ConfigError
from gptstar.evaluation.results import Metric, Sample, TaskResult, TaskResults, write_tasks
from gptstar.results.notebook import evaluations, load

N_ITEMS = 29


def scored(run: str, *tasks: str, sha256: str = "", shift: int = 0) -> TaskResults:
    """Scores of a run's checkpoint."""
    metric = Metric("acc", 0.5, 0.4, 0.6, "Wilson", "mean", higher_is_better=True, items=N_ITEMS)
    made = []
    for task in tasks:
        scores = [float((item * (3 + shift)) % 7 < 3) for item in range(N_ITEMS)]
        samples = (Sample(item, f"{task}{item}", item, {"acc": score}) for item, score in enumerate(scores))
        made.append(TaskResult(task, "1.0", {"path": task}, 32, 0, (metric,), tuple(samples)))
    who = {"name": f"{run}/best", "path": f"/gone/{run}/best.ckpt", "sha256": sha256 or f"{run}-{shift}", "step": shift}
    return TaskResults(who, {"dtype": "float32", "seeds": {"fewshot": 1}}, {"lm-eval": "0.4.9"}, tuple(made))


def written(found: TaskResults, folder: Path, age: int = 0) -> Path:
    file = write_tasks(found, folder)
    os.utime(file, (1e9 - age, 1e9 - age))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs, each evaluated on piqa, and later on arc in another folder."""
    for number in range(3):
        run = tmp_path / f"runs/seed-{number}"
        for age, task in enumerate(("arc", "piqa")):
            written(scored(run.name, task, shift=number), run / task, age)
        (run / "versions.json").write_text('{"command": "train.py"}')
    return tmp_path / "runs"


def test_tasks_of_several_evaluations_are_joined(runs: Path) -> None:
    frame = results.compare(runs / "seed-0", runs / "seed-1")
    assert sorted(frame["task"]) == ["arc", "piqa"]
    assert set(frame["model"]) == {"seed-1/best"}
    better = replace(scored("seed-1", "arc", shift=1), tasks=scored("seed-1", "arc", shift=4).tasks)
    written(better, runs / "seed-1/again", age=-1)
    later = results.compare(runs / "seed-0", runs / "seed-1").set_index("task")["b"]
    assert later["arc"] == 1 > frame.set_index("task")["b"]["arc"]
    assert later["piqa"] == frame.set_index("task")["b"]["piqa"]


def test_other_checkpoints_are_other_models_and_what_shares_no_task_is_noted(runs: Path) -> None:
    written(scored("seed-1", "piqa", shift=5), runs / "seed-1/older", 9)
    written(scored("seed-2", "lambada", sha256="alone"), runs / "seed-2/alone", 9)
    frame = results.compare(runs)
    assert list(frame["model"]) == ["seed-1/best (step 1)"] * 2 + ["seed-1/best (step 5)"] + ["seed-2/best"] * 2
    assert any(note.startswith("Left out: seed-2/best (step 0), which shares no task") for note in frame.attrs["notes"])


def test_nothing_is_compared_with_itself(runs: Path) -> None:
    frame = results.compare(runs / "seed-1", runs)
    assert list(frame["model"]) == ["seed-0/best"] * 2 + ["seed-2/best"] * 2
    assert "Holm's p is adjusted for 4 tests in all." in frame.attrs["notes"]
    two = results.compare(runs / "seed-1/piqa", runs / "seed-1/arc", runs / "seed-0")
    assert set(two["model"]) == {"seed-0/best"}


def test_a_damaged_evaluation_hides_no_other(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "seed-2/piqa/results.json").write_text("{")
    (runs / "seed-2/arc/results.json").write_text('{"kind": "tasks"}')
    with pytest.warns(results.DamagedWarning, match="seed-2/(piqa|arc)/results.json is damaged"):
        frame = results.compare(*(runs / f"seed-{number}" for number in range(3)))
    assert set(frame["model"]) == {"seed-1/best"}
    main(["compare", str(runs)])
    out, err = capsys.readouterr()
    assert "B minus A" in out
    assert err.count("warning: ") == 2
    (runs / "seed-1/piqa/results.json").write_text("{")
    (runs / "seed-1/arc/results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"two results of one kind: .*seed-0 has scores on tasks; .* is damaged: "):
        results.compare(runs)


def test_a_notebook_leaves_damaged_evaluations_out(runs: Path) -> None:
    (runs / "seed-2/piqa/results.json").write_text("{")
    with pytest.warns(results.DamagedWarning, match="seed-2/piqa/results.json is damaged"):
        found = evaluations(runs)
    assert [(each.checkpoint["name"], sorted(task.task for task in each.tasks)) for each in found] == [
        ("seed-0/best", ["arc", "piqa"]),
        ("seed-1/best", ["arc", "piqa"]),
        ("seed-2/best", ["arc"]),
    ]


def test_where_nothing_is_a_notebook_has_the_frames_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for read in (results.runs, results.curves, results.lengths, results.tasks):
        frame = load(read, tmp_path / "nowhere")
        assert frame.empty
        with pytest.warns(results.MissingResultsWarning):
            assert list(frame.columns) == list(read(tmp_path).columns)
    assert capsys.readouterr().out.count("nowhere does not exist") == 4


@pytest.mark.parametrize("n_runs", [2, 7])
def test_runs_that_differ_in_their_seed_are_sent_to_the_report(
    n_runs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    for seed in range(n_runs):
        run = folder / f"seed-{seed}"
        written(scored(run.name, "arc", shift=seed), run)
        (run / "versions.json").write_text('{"command": "train.py", "began": "2026-11-01T00:00:00+00:00"}')
        (run / "config.yaml").write_text(f"seed: {seed}\nbatch_tokens: 1\ntotal_steps: 1\nname: x\n")
        (run / "metrics.csv").write_text("step,validation/loss\n1,4.0\n")
    main(["compare", str(folder)])
    out = capsys.readouterr().out
    assert f"These runs differ in their seed. `gptstar report {folder}` pairs runs by seed" in out
    assert ("B minus A" in out) is (n_runs == 2)
    if n_runs > 2:
        assert "`--markdown` compares each of the 7 results with the first." in out
        main(["compare", str(folder), "--markdown"])
        assert capsys.readouterr().out.count("| task |") == 6

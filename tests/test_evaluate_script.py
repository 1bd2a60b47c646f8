"""`evaluate.py` and the commands around it as a user would run them, on a machine without network."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptstar.cli import main
from gptstar.evaluation.results import read_tasks
from support import ROOT
from support.runs import SMALL, evaluate_here, run_here
from support.text import write_tasks_files

Overrides = Callable[..., list[str]]


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def trained(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    more = ["data=local", f"data.files={text}", f"output={folder}", "data.validation_fraction=0.4"]
    run_here([*SMALL, *more])
    return folder


def scores(folder: Path) -> list[Any]:
    return [(task.task, sample.item, sample.scores) for task in read_tasks(folder).tasks for sample in task.samples]


def assert_close(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) > 0
    for (task, item, first), (*same, second) in zip(one, other, strict=True):
        assert same == [task, item]
        assert second == {metric: pytest.approx(score, rel=1e-5) for metric, score in first.items()}


@pytest.mark.slow
@pytest.mark.core
@pytest.mark.usefixtures("no_network")
def test_the_suite_runs_without_network(
    trained: Path, task_files: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"checkpoint={trained}", f"evaluation.data_dir={task_files}", f"output={tmp_path / 'out'}"]
    capsys.readouterr()
    evaluate_here(*options)
    shown = capsys.readouterr()
    assert shown.err == ""
    for word in ("LAMBADA", "GPT-127*", "GPT-Neo 350M", "results.json"):
        assert word in shown.out
    assert (tmp_path / "out/results.png").stat().st_size > 10_000
    assert "GPT-3 350M" in (tmp_path / "out/results.md").read_text()
    results = read_tasks(tmp_path / "out")
    assert [task.task for task in results.tasks] == ["lambada_openai", "wikitext", "piqa", "hellaswag", "winogrande"]
    assert [task.context_length for task in results.tasks] == [1024, 2048, 1024, 1024, 1024]
    assert results.checkpoint["step"] == 24
    assert results.checkpoint["tokens"] == 24 * 256
    assert len(results.checkpoint["sha256"]) == 64
    assert results.versions["lm-eval"].startswith("0.4.")
    assert "holds results already" in refusal(evaluate_here, *options)


@pytest.mark.slow
def test_ranks_find_what_one_process_finds(trained: Path, task_files: Path, tmp_path: Path) -> None:
    options = [f"checkpoint={trained}", f"evaluation.data_dir={task_files}", "evaluation.tasks=[piqa,wikitext]"]
    evaluate_here(*options, f"output={tmp_path / 'one'}")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = [*launcher, str(ROOT / "evaluate.py"), *options, f"output={tmp_path / 'two'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("GPT-127*") == 1
    assert_close(scores(tmp_path / "one"), scores(tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.core
@pytest.mark.usefixtures("no_network")
def test_an_exported_model_has_the_same_scores(
    trained: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(trained), str(tmp_path / "exported")])
    for name, checkpoint in (("a", trained), ("b", tmp_path / "exported")):
        options = [f"checkpoint={checkpoint}", f"evaluation.data_dir={task_files}", "evaluation.tasks=[piqa,wikitext]"]
        evaluate_here(*options, f"output={tmp_path / name}")
    assert_close(scores(tmp_path / "a"), scores(tmp_path / "b"))
    capsys.readouterr()
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["task"] for row in rows} == {"piqa", "wikitext"}
    assert all(abs(row["difference"]) < 1e-3 * abs(row["a"]) for row in rows)
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "compares checkpoints" in " ".join(capsys.readouterr().out.split())
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--markdown"])
    assert "| piqa" in capsys.readouterr().out


@pytest.mark.usefixtures("no_network")
def test_a_bundle_is_what_an_evaluation_takes(
    trained: Path,
    task_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
) -> None:
    main(["evaluation", "bundle", str(tmp_path / "bundle"), "--from", str(task_files), "--tasks", "piqa,winogrande"])
    assert "manifest.json" in capsys.readouterr().out
    options = [f"checkpoint={trained}", f"evaluation.data_dir={tmp_path / 'bundle'}", "evaluation.limit=5"]
    evaluate_here(*options, "evaluation.tasks=[piqa]", f"output={tmp_path / 'out'}")
    (task,) = read_tasks(tmp_path / "out").tasks
    assert (len(task.samples), task.source["dataset"]) == (5, "baber/piqa")
    (tmp_path / "bundle/piqa.jsonl").write_text("{}\n")
    again = [*options, "evaluation.tasks=[piqa]", f"output={tmp_path / 'again'}"]
    assert "piqa.jsonl" in refusal(evaluate_here, *again)
    assert not (tmp_path / "again").exists()


@pytest.mark.core
def test_length_is_studied_without_being_told_anything(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_here("evaluation=length", f"checkpoint={trained}", f"output={tmp_path / 'out'}")
    (curve,) = json.loads((tmp_path / "out/results.json").read_text())["curves"]
    assert [length["context_length"] for length in curve["lengths"]] == [32, 64, 128, 256]
    assert (tmp_path / "out/context_length.png").stat().st_size > 10_000
    assert "bits/byte" in capsys.readouterr().out

"""What `results.lengths` tells apart: texts, targets and checkpoints; and that a report reads each file once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptstar import results
from gptstar.cli import main
from gptstar.errors import ConfigError
from gptstar.results import run as run_module
from support.runs import SMALL, evaluate_here, run_here
from support.text import sentences


@pytest.fixture(scope="module")
def run(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a reading of fixed targets at two lengths."""
    folder = tmp_path_factory.mktemp("evaluations") / "runs/seed-0"
    reading = ("reading.multiples=[1,2]", "reading.protocol=fixed_targets", "reading.max_tokens=256")
    few = ("total_steps=6", "schedule.warmup_steps=1", "validate_every=3", "tags=baseline")
    run_here([*SMALL, "data=local", f"data.files={text}", *few, *reading, f"output={folder}"])
    return folder


def evaluated(checkpoint: Path, output: Path, *words: str) -> Path:
    study = ("context_lengths=[16,64]", "protocol=fixed_targets", "max_tokens=256", *words)
    evaluate_here(
        *("evaluation=length", f"checkpoint={checkpoint}", "hardware=cpu", f"output={output}"),
        *(f"evaluation.{each}" for each in study),
    )
    return output


def changed(study: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((study / "results.json").read_text())
    change(tree)
    (study / "results.json").write_text(json.dumps(tree))


def test_texts_are_told_apart_by_their_contents(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("again", 1)):
        (tmp_path / f"{name}.txt").write_text(" ".join(sentences(60, 120, seed)))
        evaluated(run, tmp_path / f"of-{name}", f"text={tmp_path / f'{name}.txt'}")
    frame = results.lengths(run.parent, tmp_path)
    of_files = frame[frame["study"] != frame["study"].iloc[0]]
    assert of_files["study"].nunique() == 2
    assert len(of_files) == 4  # those of `again` took the place of those of `a`, which is the same text
    with pytest.raises(ConfigError, match="only losses on one text by one protocol can be compared"):
        results.compare(tmp_path / "of-a", tmp_path / "of-b")
    assert (results.compare(tmp_path / "of-a", tmp_path / "of-again")["difference"] == 0).all()


def test_checkpoints_of_one_run_are_told_apart(run: Path, tmp_path: Path) -> None:
    evaluated(run / "best.ckpt", tmp_path / "best")
    evaluated(run / "last.ckpt", tmp_path / "last")
    frame = results.lengths(run.parent, tmp_path)
    frame = frame[frame["context_length"].isin([16, 64]) & frame["trained_at"].eq(32) & frame["reference"].eq(16)]
    assert list(frame["checkpoint"]) == ["seed-0/best"] * 2 + ["seed-0/last"] * 2
    assert [study.rpartition(", ")[2] for study in frame["study"]] == ["checkpoint best"] * 2 + ["checkpoint last"] * 2
    assert set(frame["run"]) == {"seed-0"}


def test_other_targets_are_another_study_and_whole_curves_are_replaced(run: Path, tmp_path: Path) -> None:
    for name in ("few", "many", "later"):
        evaluated(run, tmp_path / name, *(["max_tokens=512"] if name == "many" else []))
    changed(tmp_path / "later", lambda tree: tree["curves"][0]["lengths"].pop(0))
    frame = results.lengths(run.parent, tmp_path)
    by_targets = frame[frame["reference"] == 16].groupby("targets", sort=False)
    assert {tuple(rows["n_targets"]): tuple(rows["context_length"]) for _, rows in by_targets} == {
        (512, 512): (16, 64),
        (256,): (64,),
    }
    for targets, rows in by_targets:
        assert all(study.endswith(f", targets {targets[:8]}") for study in rows["study"])


def test_targets_that_follow_from_the_training_context_are_one_study(run: Path, tmp_path: Path) -> None:
    """As in a sweep over context length, where each run scores what it can afford."""
    for length, n_targets in ((32, 3264), (16, 3200)):
        shutil.copytree(run, tmp_path / f"{length}")
        config = (run / "config.yaml").read_text()
        assert "context_length: 32" in config
        (tmp_path / f"{length}/config.yaml").write_text(
            config.replace("context_length: 32", f"context_length: {length}")
        )

        def read_otherwise(tree: dict[str, Any], n_targets: int = n_targets, length: int = length) -> None:
            tree["protocol"]["max_tokens"] = n_targets
            tree["curves"][0] |= {"targets": f"{n_targets}", "trained_at": length}

        changed(tmp_path / f"{length}/length", read_otherwise)
    frame = results.lengths(tmp_path)
    assert frame.groupby("targets")["run"].unique().map(list).to_dict() == {"3200": ["16"], "3264": ["32"]}
    assert frame["study"].nunique() == 1


def test_results_on_another_run_are_not_the_runs_own(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "runs/seed-0")
    shutil.copytree(run, tmp_path / "runs/seed-1")
    about = tmp_path / "runs/seed-1/versions.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"began": "2026-11-01T00:00:00+00:00"}))
    evaluated(tmp_path / "runs/seed-0", tmp_path / "runs/seed-1/other")
    shutil.rmtree(tmp_path / "runs/seed-1/length")
    assert set(results.lengths(tmp_path / "runs/seed-1")["run"]) == {"seed-1: seed-0/best"}
    assert set(results.lengths(tmp_path / "runs")["run"]) == {"seed-0"}
    shutil.copytree(tmp_path / "runs/seed-0", tmp_path / "copy/seed-0")  # whose results are about the original
    assert set(results.lengths(tmp_path / "copy")["run"]) == {"seed-0"}


def test_a_report_reads_each_run_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        shutil.copytree(run, tmp_path / f"runs/seed-{seed}")
    read: list[Path] = []
    original = run_module.read_metrics
    monkeypatch.setattr(run_module, "read_metrics", lambda path: read.append(path) or original(path))
    main(["report", str(tmp_path / "runs"), "--output", str(tmp_path)])
    assert sorted(path.name for path in read) == ["seed-0", "seed-1", "seed-2"]


def test_a_single_word_is_a_tag(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", str(run), "--tag", "baseline", "--json"])
    (listed,) = json.loads(capsys.readouterr().out)["runs"]
    assert listed["tags"] == ["baseline"]

"""What a table of a study refuses, and what comes back out of it, on run directories written by hand."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from gptstar.checkpoint.read import find
from gptstar.cli import main
from gptstar.errors import CheckpointError, ConfigError
from gptstar.launch.study_table import StudyTable
from gptstar.launch.thinning import thinned
from gptstar.results.loaded import evaluation_files
from gptstar.results.run import Run, find_runs
from gptstar.training.restored import check_restored, replace_path, without_own_paths

TEXT = "a" * 64


def config(steps: int = 60, files: str = "/mnt/books/*.jsonl", **more: object) -> str:
    tree = {"batch_tokens": 256, "total_steps": steps, "seed": 0, "data": {"files": files}, **more}
    return json.dumps(tree, indent=1)  # which is YAML, too


def written(folder: Path, text: str = "", fingerprint: str = TEXT) -> Path:
    """A finished run directory: 500 rows, whose speed rises and then falls."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text or config())
    about = {"data": fingerprint, "command": "python train.py data.files='/mnt/books/*.jsonl' output=/mnt/out"}
    (folder / "versions.json").write_text(json.dumps(about | {"began": "2026-11-01T00:00:00+00:00"}))
    status = {"state": "finished", "reason": "", "at": "2026-11-01T01:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    with (folder / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "tokens", "train/loss", "tokens_per_second", "validation/loss"])
        for step in range(1, 501):
            loss = 5 - step / 1000
            speed = 1000 + 3 * min(step, 750 - step)
            writer.writerow([step, 256 * step, loss, speed, loss if step % 250 == 0 else ""])
    return folder


def test_a_run_of_other_settings_does_not_replace_one_of_the_same_name(tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(tmp_path / "long", [written(tmp_path / "long/seed-0")])
    before = table.path.read_bytes()
    for name, run in (("short", config(20)), ("books", config())):
        folder = written(tmp_path / name / "seed-0", run, TEXT if name == "short" else "b" * 64)
        said = "total_steps (there 60, here 20)" if name == "short" else "the text (its fingerprint is aaaaaaaaaaaa"
        with pytest.raises(ConfigError, match=re.escape(f"seed-0 in {table.path} is a run of other settings: {said}")):
            table.save(tmp_path / name, [folder])
    assert table.path.read_bytes() == before


def test_a_new_run_shares_the_tables_steps_and_text_unless_the_sweep_varies_them(tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(tmp_path / "a", [written(tmp_path / "a/seed-0")])
    study, new, old = tmp_path / "b", tmp_path / "b/seed-1", tmp_path / "b/seed-0"
    table.check(old, study, config(), TEXT, ())
    table.check(new, study, config(), TEXT, ("seed",))
    with pytest.raises(ConfigError, match=r"seed-0 in .* is a run of other settings: total_steps \(there 60, here 20"):
        table.check(old, study, config(20), TEXT, ("total_steps",))
    with pytest.raises(ConfigError, match=r"seed-1 would be the first run in .* with total_steps=20 \(there 60\)"):
        table.check(new, study, config(20), TEXT, ("seed",))
    with pytest.raises(ConfigError, match=r"first run in .* with this text"):
        table.check(new, study, config(), "b" * 64, ("seed",))
    table.check(new, study, config(20), TEXT, ("seed", "total_steps"))
    table.check(new, study, config(), "b" * 64, ("data.source",))
    table.check(new, study, config(20), "b" * 64, ("experiment",))


def test_thinning_again_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path / "run") / "metrics.csv"
    once = thinned(file)
    assert 20 <= once.count("\n") - 1 <= 25
    file.write_text(once)
    assert thinned(file) == once


def test_a_restored_run_keeps_its_hours_and_its_speed(tmp_path: Path) -> None:
    run = Run.read(written(tmp_path / "a/seed-0"))
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(tmp_path / "a", [run.path])
    table.restore(tmp_path / "b")
    back = Run.read(tmp_path / "b/seed-0")
    assert len(back.rows) < len(run.rows)
    assert back.hours == pytest.approx(run.hours, rel=1e-5)
    assert back.tokens_per_second == pytest.approx(run.tokens_per_second, rel=1e-5)
    before = table.path.read_bytes()
    assert table.save(tmp_path / "b", [back.path]) == []
    assert table.path.read_bytes() == before


def test_a_line_without_hours_is_read_as_before(tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(tmp_path / "a", [written(tmp_path / "a/seed-0")])
    header, line = map(json.loads, table.path.read_text().splitlines())
    older = {key: line[key] for key in ("run", "at", "validation_loss", "files")}
    table.path.write_text(f"{json.dumps(header)}\n{json.dumps(older)}\n")
    table.restore(tmp_path / "b")
    assert Run.read(tmp_path / "b/seed-0").hours > 0


def test_no_absolute_path_is_kept_from_wherever_a_table_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = {"data": {"files": "/mnt/books/*.jsonl", "corpora": {"code": {"files": ["/mnt/code/*", "s3://code/x"]}}}}
    folder = written(tmp_path / "a/seed-0", config(reading={"text": "/srv/held out/text.txt"}, **corpora))
    status = {"state": "finished", "reason": "ended: /mnt/a/b.py (file:///mnt/c/d)", "at": "2026-11-01T01:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(tmp_path / "a", [folder])
    text = json.dumps(table.read())
    assert not re.search(r"""(^|[\s'"=\[(])/""", text)
    assert "/mnt" not in text
    assert "s3://code/x" in text
    table.restore(tmp_path / "b")
    check_restored(tmp_path / "b/seed-0", (folder / "config.yaml").read_text(), TEXT)


def test_a_corpus_may_have_moved(tmp_path: Path) -> None:
    corpus = {"data": {"files": None, "corpora": {"code": {"files": ["/mnt/code/*"], "epochs": 1.0}}}}
    folder = written(tmp_path / "seed-0", config(**corpus))
    corpus["data"]["corpora"]["code"]["files"] = ["/srv/other/*.zst"]  # type: ignore[index]
    check_restored(folder, config(**corpus), TEXT)
    corpus["data"]["corpora"]["code"]["epochs"] = 2.0  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"data.corpora.code.epochs \(there 1.0, here 2.0\)"):
        check_restored(folder, config(**corpus), TEXT)


def test_only_whole_paths_are_replaced() -> None:
    text = "/mnt/home/ada/x and https://host/home/ada/y but /home/ada/z"
    assert replace_path(text, Path("/home/ada"), ".") == "/mnt/home/ada/x and https://host/home/ada/y but ./z"
    assert without_own_paths("https://host/a/b s3://c/d a/b") == "https://host/a/b s3://c/d a/b"


def test_a_run_that_is_being_restored_is_none_yet(tmp_path: Path) -> None:
    written(tmp_path / "seed-0")
    partial = written(tmp_path / ".seed-1.partial")
    (partial / "length").mkdir()
    (partial / "length/results.json").write_text("{}")
    assert [run.path.name for run in find_runs([tmp_path])] == ["seed-0"]
    assert evaluation_files([tmp_path]) == []


def test_one_restores_into_a_folder_at_a_time(tmp_path: Path, refusal: Callable[..., str]) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(tmp_path / "a", [written(tmp_path / "a/seed-0")])
    words = ["study", "restore", str(table.path), str(tmp_path / "b")]
    (tmp_path / "b").mkdir()
    with FileLock(tmp_path / "b/.sweep.lock"):
        assert f"output={tmp_path / 'b'} is in use by another sweep" in refusal(main, words)
    assert not (tmp_path / "b/seed-0").exists()
    main(words)
    assert (tmp_path / "b/seed-0/restored.json").exists()


def test_a_restored_run_has_no_checkpoint_and_says_why(tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(tmp_path / "a", [written(tmp_path / "a/seed-0")])
    table.restore(tmp_path / "b")
    with pytest.raises(CheckpointError, match=rf"seed-0 was restored from {table.path}, without checkpoint"):
        find(tmp_path / "b/seed-0")

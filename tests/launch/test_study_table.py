"""The table of a study: what it keeps of a run, what it gives back, and what it refuses."""

import base64
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.checkpoint.kept import restored_from
from gptstar.cli import main
from gptstar.errors import ConfigError
from gptstar.launch.study_table import HEADER, StudyTable
from gptstar.launch.thinning import rounded
from gptstar.results import curves, lengths, runs
from gptstar.results.attention_heads import heads
from gptstar.results.run import Run
from gptstar.training.restored import check_restored
from gptstar.training.settings import is_finished
from support.runs import run_here

Trained = Callable[..., Path]
READING = ("reading.multiples=[1,2]", "reading.max_tokens=256", "final_studies=[heads]")


WHOLE: dict[str, object] = {"config.yaml": "", "versions.json": {}, "status.json": {}}


def line(name: str, files: dict[str, object]) -> str:
    packed = base64.b85encode(zlib.compress(json.dumps(files).encode())).decode()
    return json.dumps({"run": name, "files": packed})


@pytest.fixture
def study(trained_once: Trained, tmp_path: Path) -> Path:
    """A folder of two runs, one of which has studies."""
    for name, words in (("kinds/alibi", READING), ("plain", ())):
        folder = tmp_path / "study" / name
        shutil.copytree(trained_once(*words), folder)
    return tmp_path / "study"


def folders(study: Path) -> list[Path]:
    return [study / "kinds/alibi", study / "plain"]


def test_what_is_restored_reads_as_the_runs_did(study: Path, tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "tables/study.jsonl")
    assert table.save(study, folders(study)) == ["kinds/alibi", "plain"]
    assert table.save(study, folders(study)) == []
    assert table.restore(tmp_path / "back") == ["kinds/alibi", "plain"]
    assert table.restore(tmp_path / "back") == []
    assert not list((tmp_path / "back").rglob("*.ckpt"))
    assert not list((tmp_path / "back").rglob("*.partial"))
    for read in (runs, lengths, heads):
        before, after = read(study), read(tmp_path / "back")
        assert len(before) == len(after) > 0
        assert list(before["run"]) == list(after["run"])
    assert runs(tmp_path / "back")["validation_loss"].tolist() == pytest.approx(runs(study)["validation_loss"].tolist())
    assert heads(tmp_path / "back")["beyond"].tolist() == pytest.approx(
        heads(study)["beyond"].tolist(), rel=1e-3, nan_ok=True
    )
    assert {*curves(tmp_path / "back")["step"]} <= {*curves(study)["step"]}
    plain = Run.read(tmp_path / "back/plain")
    assert (plain.state, plain.step) == ("finished", 24)
    again = StudyTable(tmp_path / "tables/again.jsonl")
    again.save(tmp_path / "back", folders(tmp_path / "back"))
    assert again.read() == table.read()


def test_a_table_has_no_path_of_the_machine(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(study.parent.parent))
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(study, folders(study))
    text = table.path.read_text()
    assert str(study) not in text
    assert f"{study.parent.parent}/" not in text
    table.restore(tmp_path / "back")
    read = json.loads((tmp_path / "back/kinds/alibi/length/results.json").read_text())
    assert read["curves"][0]["checkpoint"]["context_length"] == 32


def test_a_run_that_has_changed_replaces_its_line(study: Path, tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(study, folders(study))
    before = table.path.read_text().splitlines()
    shutil.rmtree(study / "kinds/alibi/heads")
    assert table.save(study, folders(study)) == ["kinds/alibi"]
    after = table.path.read_text().splitlines()
    assert (len(after), after[0], after[2]) == (3, before[0], before[2])
    assert len(after[1]) < len(before[1])


def test_what_is_not_finished_is_left_out(study: Path, tmp_path: Path) -> None:
    status = json.loads((study / "plain/status.json").read_text())
    (study / "plain/status.json").write_text(json.dumps(status | {"state": "stopped"}))
    assert StudyTable(tmp_path / "study.jsonl").save(study, folders(study)) == ["kinds/alibi"]


def test_a_run_that_began_is_not_overwritten(study: Path, tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(study, folders(study))
    (tmp_path / "back/plain").mkdir(parents=True)
    (tmp_path / "back/plain/.lock").touch()
    (tmp_path / "back/kinds/alibi").mkdir(parents=True)
    (tmp_path / "back/kinds/alibi/versions.json").write_text("{}")
    assert table.restore(tmp_path / "back") == ["plain"]
    assert (tmp_path / "back/kinds/alibi/versions.json").read_text() == "{}"


def test_a_line_is_small(study: Path, tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(study, folders(study))
    assert all(len(line) < 7_000 for line in table.path.read_text().splitlines())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{}"], "line 1: begins with"),
        (["not json"], "line 1: "),
        ([json.dumps(HEADER), line("a", {})], "line 2: a run lacks config.yaml"),
        ([json.dumps(HEADER), line("../a", {})], "line 2: the run '../a' does not lie"),
        ([json.dumps(HEADER), line("/a", {})], "line 2: the run '/a' does not lie"),
        ([json.dumps(HEADER), '{"run": "a"}'], "line 2: 'files'"),
        ([json.dumps(HEADER), '{"run": "a", "files": "c"}'], "line 2: "),
        ([json.dumps(HEADER), '{"run": "a", "files": 3}'], "line 2: "),
        ([json.dumps(HEADER), '{"run": "a", "fil'], "line 2: "),
        ([json.dumps(HEADER), line("a", WHOLE | {"../x": "y"})], "line 2: ../x is not a file of a run"),
        ([json.dumps(HEADER), line("a", WHOLE | {"config.yaml": 3})], "line 2: a text is something else"),
    ],
)
def test_what_is_not_a_table_is_refused_with_its_line(lines: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "study.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as refused:
        StudyTable(tmp_path / "study.jsonl").restore(tmp_path / "back")
    assert said in str(refused.value)
    assert not (tmp_path / "back").exists()


def test_numbers_keep_six_digits() -> None:
    tree = {"loss": 4.123456789, "n": 123456789, "none": None, "rows": [1e-12 / 3, float("nan"), True]}
    assert rounded(tree) == {"loss": 4.12346, "n": 123456789, "none": None, "rows": [3.33333e-13, None, True]}


def test_restored_runs_are_checked_by_configuration_and_text(study: Path, tmp_path: Path) -> None:
    table = StudyTable(tmp_path / "study.jsonl")
    table.save(study, folders(study))
    table.restore(tmp_path / "back")
    folder = tmp_path / "back/plain"
    config, about = (folder / "config.yaml").read_text(), json.loads((folder / "versions.json").read_text())
    assert restored_from(folder) == str(table.path)
    assert restored_from(study / "plain") is None
    assert not is_finished(folder, config)  # it has no checkpoint to go on from or to evaluate
    check_restored(folder, config, about["data"])
    moved = "\n".join("  files: elsewhere/*" if line.startswith("  files:") else line for line in config.splitlines())
    assert moved != config
    check_restored(folder, moved, about["data"])
    with pytest.raises(ConfigError, match=r"plain in .*study.jsonl is a run of other settings: the text"):
        check_restored(folder, config, "0" * 64)
    with pytest.raises(ConfigError, match=r"total_steps \(there 24, here 25\)"):
        check_restored(folder, config.replace("total_steps: 24", "total_steps: 25"), about["data"])


def test_a_restored_run_is_not_trained_over(
    study: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    from support.runs import SMALL

    table = StudyTable(tmp_path / "study.jsonl")
    table.save(study, folders(study))
    table.restore(tmp_path / "back")
    folder = tmp_path / "back/plain"
    words = [*SMALL, "data=local", f"data.files={text}", f"output={folder}"]
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    run_here(words)
    assert f"{folder} is finished, in {table.path}" in capsys.readouterr().out.replace("\n", "")
    assert "total_steps (there 24, here 25)" in refusal(run_here, [*words, "total_steps=25"])
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    assert after == before


def test_the_command_saves_and_restores(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Callable[..., str]
) -> None:
    table = tmp_path / "study.jsonl"
    main(["study", "save", str(study), str(table)])
    assert "2 of 2 runs are new or have changed" in capsys.readouterr().out
    main(["study", "restore", str(table), str(tmp_path / "back")])
    assert "restored 2 of 2 runs" in capsys.readouterr().out
    main(["report", str(tmp_path / "back")])
    assert (tmp_path / "back/report/report.html").exists()
    capsys.readouterr()
    assert "is a run: give the folder" in refusal(main, ["study", "save", str(study / "plain"), str(table)])
    assert "holds no run" in refusal(main, ["study", "restore", str(tmp_path / "none.jsonl"), str(tmp_path / "x")])
    assert "not a table of a study" in refusal(
        main, ["study", "restore", str(study / "plain/config.yaml"), str(tmp_path / "x")]
    )

"""The functions of `gptstar.results` for notebooks, with all kinds of sources."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gptstar import results
from gptstar.errors import ConfigError
from gptstar.results.attention_heads import HEAD_FIGURES
from gptstar.results.comparison import COMPARE_FIGURES
from gptstar.results.evaluations import LENGTH_FIGURES, TASK_FIGURES
from gptstar.results.factors import EFFECT_FIGURES, level_effects
from gptstar.results.frames import CURVE_FIGURES, FIGURES
from gptstar.results.recall_frame import RECALL_FIGURES
from support import ROOT
from support.runs import SMALL, evaluate_here, run_here

SCRIPT = Path(__file__).with_name("typed_script.py")


@pytest.fixture(scope="module")
def folder(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make runs `runs/seed-9` and `runs/seed-10` with readings in report.json, and an evaluation `mine` of seed-9."""
    folder = tmp_path_factory.mktemp("api")
    words = [*SMALL, "data=local", f"data.files={text}", "total_steps=3", "schedule.warmup_steps=1", "report=true"]
    words += ["batch_tokens=20480", "hardware.micro_batch_size=32"]  # so that it can afford to read
    study = [f"evaluation.{each}" for each in ("context_lengths=[16,64]", "protocol=fixed_targets", "max_tokens=512")]
    for seed in (9, 10):
        run_here([*words, f"seed={seed}", f"output={folder / f'runs/seed-{seed}'}"])
        where = folder / ("results/mine" if seed == 9 else "results/other")
        checkpoint = f"checkpoint={folder / f'runs/seed-{seed}'}"
        evaluate_here("evaluation=length", checkpoint, *study, "hardware=cpu", f"output={where}")
    return folder


def report_of(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "report.json").read_text())
    return tree


def test_lengths_has_what_a_run_read_by_itself(folder: Path) -> None:
    run = folder / "runs/seed-9"
    frame = results.lengths(run)
    report = report_of(run)
    points = report["curve"]["lengths"]
    assert list(frame.columns) == list(LENGTH_FIGURES)
    assert list(frame["context_length"]) == [point["context_length"] for point in points]
    assert list(frame["loss"]) == [point["loss"]["value"] for point in points]
    assert list(frame["multiple"]) == [length / 32 for length in frame["context_length"]]
    for change, point in zip(frame.to_dict("records"), points, strict=True):
        found = [change[key] for key in ("change", "change_low", "change_high")]
        paired = point["change"]
        if paired is None:
            assert all(map(pd.isna, found))
            assert change["context_length"] == change["reference"]
        else:
            assert found == [paired["difference"], paired["low"], paired["high"]]


def older(points: list[dict[str, Any]]) -> dict[str, Any]:
    return {"lengths": points}


def newer(points: list[dict[str, Any]]) -> dict[str, Any]:
    curve = {"name": "x", "trained_at": 32, "reference": 32, "rotary_scaling": "none", "checkpoint": {}}
    protocol = {"protocol": "fixed_targets", "targets": 64}
    return {"curve": curve | {"lengths": points}, "protocol": protocol, "text": {"fingerprint": "abcdef"}}


@pytest.mark.parametrize(
    ("form", "study"), [(older, "disjoint, max_tokens 1024, text "), (newer, "fixed_targets, targets 64, text abcdef")]
)
def test_both_forms_of_a_report_are_read(
    form: Callable[[list[dict[str, Any]]], dict[str, Any]], study: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "runs/seed-9", tmp_path / "run")
    report = report_of(folder / "runs/seed-9")
    points = report["curve"]["lengths"]
    (tmp_path / "run/report.json").write_text(json.dumps({"bigram_loss": 3.0} | form(points)))
    frame = results.lengths(tmp_path)
    assert len(frame) == len(points)
    assert set(frame["trained_at"]) == {32}
    assert set(frame["reference"]) == {32}
    assert frame["study"].iloc[0].startswith(study)
    (tmp_path / "run/report.json").write_text(json.dumps({"bigram_loss": 3.0}))
    with pytest.warns(results.MissingResultsWarning):
        assert results.lengths(tmp_path).empty


def test_sources_are_mixed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    both = results.runs("runs")
    assert list(both["run"]) == ["seed-9", "seed-10"]  # by number
    ways: list[tuple[results.Source, ...]] = [
        ("runs/seed-*",),
        (Path("runs/seed-9"), "runs/seed-10"),
        (["runs/seed-9", (folder / "runs/seed-10",)],),
        (folder,),
        (["runs", "results/mine/results.json"], "results"),
        ("runs", "runs/seed-9"),
    ]
    for sources in ways:
        assert list(results.runs(*sources)["validation_loss"]) == list(both["validation_loss"]), sources
        assert set(results.curves(*sources)["run"]) == {"seed-9", "seed-10"}
    assert list(results.runs(folder)["run"]) == ["seed-9", "seed-10"]


def test_an_evaluation_of_a_run_not_given_has_its_folders_name(folder: Path) -> None:
    frame = results.lengths(folder / "results")
    assert list(frame["run"]) == ["mine", "mine", "other", "other"]
    assert list(frame["multiple"]) == [0.5, 2, 0.5, 2]
    assert list(results.lengths(folder / "results/mine")["run"]) == ["mine", "mine"]
    assert list(results.lengths([folder / "results/mine/results.json"])["run"]) == ["mine", "mine"]
    known = results.lengths(folder / "runs/seed-9", folder / "results")
    assert list(known[known["targets"].isin(frame["targets"])]["run"]) == ["seed-9", "seed-9", "other", "other"]


def test_what_does_not_exist_is_refused(folder: Path) -> None:
    for sources, says in (
        ((folder / "nowhere",), "nowhere does not exist: give the output of train.py or evaluate.py"),
        ((str(folder / "nowhere-*"),), "matches no folder"),
        (([],), "no path was given"),
        ((folder / "runs/seed-9/metrics.csv",), "neither a folder nor a results.json"),
        ((3,), "3 is not a path"),
    ):
        for function in (results.runs, results.curves, results.lengths, results.tasks, results.compare):
            with pytest.raises(ConfigError, match=says):
                function(*sources)  # type: ignore[arg-type]


def test_where_there_is_nothing_a_warning_says_how_to_get_it(folder: Path, tmp_path: Path) -> None:
    for function, figures, says in (
        (results.runs, FIGURES, "no run in .*: train one with python train.py"),
        (results.curves, CURVE_FIGURES, "no run in .*: train one with python train.py"),
        (results.lengths, LENGTH_FIGURES, "there is no reading at several context lengths in .*: run `python evaluate"),
        (results.heads, HEAD_FIGURES, "there is no study of attention heads in .*: run `python evaluate"),
        (results.recall, RECALL_FIGURES, "there is no study of recall in .*: run `python evaluate"),
        (results.tasks, TASK_FIGURES, "there is no score on a task in .*: run `python evaluate.py checkpoint=RUN"),
    ):
        with pytest.warns(results.MissingResultsWarning, match=says):
            frame = function(tmp_path)
        assert frame.empty
        assert list(frame.columns) == list(figures)
    with pytest.warns(results.MissingResultsWarning, match="none of these 2 runs has a score on a task"):
        results.tasks(folder / "runs")
    with pytest.raises(ConfigError, match=r"holds no results to compare: evaluate\.py checkpoint=RUN output="):
        results.compare(tmp_path)
    with pytest.raises(ConfigError, match=r"needs two results of one kind: .*mine has losses at context lengths"):
        results.compare(folder / "results/mine")


def test_effects_are_those_of_the_report(folder: Path) -> None:
    runs = results.runs(folder / "runs")
    with pytest.warns(results.MissingResultsWarning, match="no two of 2 finished runs differ in a single setting"):
        assert list(results.effects(runs).columns) == list(EFFECT_FIGURES)
    lines = [
        {
            "seed": seed,
            "wide": wide,
            "state": "finished",
            "validation_loss": 4 + 0.1 * seed - wide * (0.5 + 0.01 * seed),
        }
        for seed in range(5)
        for wide in (0, 1)
    ]
    frame = pd.DataFrame([*lines, {"seed": 0, "wide": 1, "state": "running", "validation_loss": 99.0}])
    found = results.effects(frame, ["wide", "seed"])
    (expected,) = level_effects(pd.DataFrame(lines), ["wide", "seed"])
    line = found.iloc[0]
    assert (line["effect"], line["low"], line["high"], line["p"]) == (
        *(expected.effect.value, expected.effect.low, expected.effect.high, expected.effect.p),
    )
    assert line["effect"] == pytest.approx(-0.52)
    assert (line["level"], line["against"], line["seeds"], line["verdict"]) == (1, 0, 5, "significant")
    ratio = results.effects(frame, ["wide", "seed"], ratio=True).iloc[0]
    assert ratio["low"] < ratio["effect"] < ratio["high"] < 1
    with pytest.raises(ConfigError, match="the frame has no column los: choose from"):
        results.effects(frame, ["wide"], "los")


def test_compare_pairs_lengths(folder: Path) -> None:
    frame = results.compare(folder / "results/mine", folder / "results/other")
    assert list(frame.columns) == list(COMPARE_FIGURES)
    assert list(frame["context_length"]) == [16, 64]
    assert (frame["difference"] == frame["b"] - frame["a"]).all()
    assert ((frame["low"] <= frame["difference"]) & (frame["difference"] <= frame["high"])).all()
    assert frame["p_holm"].between(0, 1).all()
    assert any(note.startswith("Read as: fixed_targets") for note in frame.attrs["notes"])
    a, b = (results.lengths(folder / "results" / name)["loss"] for name in ("mine", "other"))
    assert list(frame["difference"]) == pytest.approx(list(b - a), abs=1e-6)
    assert len(results.compare(folder / "runs")) == len(results.lengths(folder / "runs")) // 2
    assert set(results.compare(folder / "results")["model"]) == {"seed-10/best"}


def test_readings_of_other_sizes_are_compared_without_intervals(folder: Path, tmp_path: Path) -> None:
    where = f"output={tmp_path / 'small'}"
    words = ["context_lengths=[16,64]", "max_tokens=256", "protocol=fixed_targets"]
    study = [f"evaluation.{each}" for each in words]
    evaluate_here("evaluation=length", f"checkpoint={folder / 'runs/seed-10'}", *study, "hardware=cpu", where)
    frame = results.compare(folder / "results/mine", tmp_path / "small")
    assert frame["p"].isna().all()
    assert set(frame["verdict"]) == {"not tested"}
    assert any("other tokens were scored" in note for note in frame.attrs["notes"])


@pytest.mark.slow
def test_the_package_shows_its_names_and_waits_with_pandas() -> None:
    assert set(results.__all__) <= set(dir(results))
    assert all(hasattr(results, name) for name in results.__all__)
    assert all(callable(getattr(results, name)) for name in results.__all__ if name != "Source")
    code = "import gptstar.results as r, sys; assert not {'pandas', 'torch'} & {*sys.modules}; r.runs; r.effects; "
    code += "import gptstar.results.factors, gptstar.results.frames; assert callable(r.effects) and callable(r.lengths)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_script_on_the_installed_package_is_typed(tmp_path: Path) -> None:
    """It takes half a minute, because mypy also reads torch."""
    wheel = [sys.executable, "-m", "pip", "-q", "wheel", str(ROOT), "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "-w", str(tmp_path)], check=True)
    venv.create(tmp_path / "venv")
    (packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), packages, "zip")
    assert (packages / "gptstar/py.typed").exists()
    others = next(path for path in sys.path if (Path(path) / "torch").is_dir())
    (packages / "others.pth").write_text(others + "\n")
    (tmp_path / "script.py").write_text(SCRIPT.read_text())
    (tmp_path / "wrong.py").write_text("from gptstar import results\nresults.rums('runs')\nresults.runs(3)\n")
    assert 25 <= len(SCRIPT.read_text().splitlines()) <= 40

    def checked(script: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(tmp_path / "venv/bin/python")]
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
        return subprocess.run(
            [*command, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    good, wrong = checked("script.py"), checked("wrong.py")
    assert good.stdout.startswith("Success: no issues found"), good.stdout
    assert wrong.stdout.count("error:") == 2, wrong.stdout

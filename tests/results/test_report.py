"""Reading of runs: frames, tables, and the report."""

import json
import math
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gptstar import results
from gptstar.cli import main
from gptstar.results.evaluations import lengths_of, tasks_of
from gptstar.results.factors import level_effects
from gptstar.results.loaded import Loaded
from gptstar.results.report import _column, _prose
from gptstar.results.run import Run, find_runs
from gptstar.results.sources import MissingResultsWarning
from gptstar.training.status import Status
from support.runs import SMALL, run_here

READING = ("reading.multiples=[1,2,4]", "reading.max_tokens=512", "reading.rotary_scaling=[none]")


@pytest.fixture(scope="module")
def swept(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make runs with two context lengths, two kinds of positions and two seeds."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    few = ("total_steps=6", "schedule.warmup_steps=1", "validate_every=3", *READING)
    for length in (32, 16):
        for positions in ("alibi", "learned"):
            for seed in (0, 1):
                name = f"context_length-{length}_positions-{positions}_seed-{seed}"
                varied = (f"data.context_length={length}", f"model.positions={positions}", f"seed={seed}")
                run_here([*SMALL, "data=local", f"data.files={text}", *few, *varied, f"output={folder / name}"])
    return folder


def test_a_frame_has_a_line_for_each_run(swept: Path) -> None:
    runs = results.runs(swept)
    assert len(runs) == 8
    assert set(runs["state"]) == {"finished"}
    assert results.varied(runs) == ["model.positions", "data.context_length", "seed"]
    first = runs.iloc[0]
    assert (first["tokens"], first["step"], first["batch_tokens"]) == (6 * 256, 6, 256)
    assert first["run"] == "context_length-16_positions-alibi_seed-0"
    assert 4 < first["validation_loss"] < 7
    assert first["tokens_per_second"] > 0
    assert runs["run"].is_unique


def test_curves_hold_what_was_recorded(swept: Path) -> None:
    curves = results.curves(swept)
    run = Run.read(swept / "context_length-32_positions-alibi_seed-1")
    mine = curves[(curves["run"] == run.path.name) & (curves["metric"] == "validation/loss")]
    recorded = [(row["step"], row["validation/loss"]) for row in run.rows if "validation/loss" in row]
    assert list(zip(mine["step"], mine["value"], strict=True)) == recorded
    assert list(mine["tokens"]) == [3 * 256, 6 * 256]


def test_lengths_end_where_learned_positions_do(swept: Path) -> None:
    lengths = results.lengths(swept)
    multiples = lengths.groupby("run")["multiple"].apply(list)
    assert multiples["context_length-16_positions-alibi_seed-0"] == [1, 2, 4]
    assert multiples["context_length-16_positions-learned_seed-0"] == [1]
    assert (lengths["low"] < lengths["loss"]).all()


def test_an_evaluation_beside_the_runs_is_told_by_its_checkpoint(swept: Path, tmp_path: Path) -> None:
    run = "context_length-16_positions-alibi_seed-0"
    shutil.copytree(swept / run, tmp_path / run)
    found = json.loads((tmp_path / run / "length/results.json").read_text())
    shutil.rmtree(tmp_path / run / "length")
    with pytest.warns(MissingResultsWarning, match="this run has no reading at several context lengths: run `python"):
        assert results.lengths(tmp_path).empty
    for name, where in (("ours", tmp_path / run / "best.ckpt"), ("theirs", tmp_path / "elsewhere/best.ckpt")):
        found["curves"][0]["checkpoint"]["path"] = str(where)
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    assert sorted(results.lengths(tmp_path)["run"]) == [run] * 3 + ["theirs"] * 3


def copied(run: Path, to: Path, *changes: tuple[str, str, str]) -> None:
    """Copy a run with replaced words in its files: `(file, word, other)`."""
    shutil.copytree(run, to)
    for file, word, other in changes:
        text = (to / file).read_text()
        assert word in text
        (to / file).write_text(text.replace(word, other))


def test_a_run_has_one_curve_of_a_study_and_studies_are_not_mixed(swept: Path, tmp_path: Path) -> None:
    run = swept / "context_length-16_positions-alibi_seed-0"
    copied(run, tmp_path / "run", ("length/results.json", str(run), str(tmp_path / "run")))
    copied(run / "length", tmp_path / "again", ("results.json", str(run), str(tmp_path / "run")))
    assert list(results.lengths(tmp_path)["run"]) == ["run"] * 3
    other = ("results.json", '"stride": null', '"stride": 8')
    copied(run / "length", tmp_path / "other", ("results.json", str(run), str(tmp_path / "run")), other)
    lengths = results.lengths(tmp_path)
    assert len(lengths) == 6
    assert lengths["study"].nunique() == 2
    main(["report", str(tmp_path)])
    assert (tmp_path / "report/report.md").read_text().count("## Beyond the training context (") == 2


@pytest.mark.slow
def test_other_data_is_another_cell(swept: Path, tmp_path: Path) -> None:
    """Otherwise two corpora would count as two seeds."""
    run = swept / "context_length-16_positions-alibi_seed-0"
    data = json.loads((run / "versions.json").read_text())["data"]
    copied(run, tmp_path / "a")
    copied(run, tmp_path / "b", ("versions.json", data, "0" * len(data)))
    runs = results.runs(tmp_path)
    assert results.varied(runs) == ["data.fingerprint"]
    main(["report", str(tmp_path)])
    report = (tmp_path / "report/report.md").read_text()
    assert "Effects on validation bits per byte" in report
    assert "can't be compared" in report


def test_a_rate_at_the_end_of_those_tried_is_said_to_be(swept: Path, tmp_path: Path) -> None:
    run = swept / "context_length-16_positions-alibi_seed-0"
    rate = next(line for line in (run / "config.yaml").read_text().splitlines() if "learning_rate:" in line)
    for residual in ("parallel", "sequential"):
        for number in (1, 2, 3):
            changes = [("config.yaml", rate, f"{rate.partition(':')[0]}: {number}.0")]
            if residual == "sequential":
                changes.append(("config.yaml", "residual: parallel", "residual: sequential"))
            copied(run, tmp_path / f"{residual}-{number}", *changes)
    main(["report", str(tmp_path)])
    report = (tmp_path / "report/report.md").read_text()
    assert "a rate beyond may be better" in report
    assert "| not decided: a best learning rate is at the end of its rates |" in report


@pytest.mark.slow
def test_null_is_a_level(swept: Path, tmp_path: Path) -> None:
    run = swept / "context_length-16_positions-alibi_seed-0"
    clip = next(line for line in (run / "config.yaml").read_text().splitlines() if "gradient_clip" in line)
    copied(run, tmp_path / "a")
    copied(run, tmp_path / "b", ("config.yaml", clip, clip.partition(":")[0] + ": null"))
    runs = results.runs(tmp_path)
    (factor,) = results.varied(runs)
    assert list(runs[factor])[1] == "null"
    assert len(level_effects(runs, [factor])) == 1


def test_a_default_that_was_named_is_no_difference(swept: Path, tmp_path: Path) -> None:
    run = swept / "context_length-16_positions-alibi_seed-0"
    copied(run, tmp_path / "a")
    residual, command = ("config.yaml", "residual: parallel", "residual: sequential"), '"command": "'
    named = ("versions.json", command, command + "train.py model=tiny x ")
    copied(run, tmp_path / "b", named, residual, ("config.yaml", "log_every: 1", "log_every: 7"))
    assert results.varied(results.runs(tmp_path)) == ["model.residual"]


def test_a_last_validation_that_was_no_number_hides_no_earlier_one(swept: Path, tmp_path: Path) -> None:
    run = swept / "context_length-16_positions-alibi_seed-0"
    shutil.copytree(run, tmp_path / "run")
    head, *rows = (run / "metrics.csv").read_text().splitlines()
    place = head.split(",").index("validation/loss")
    kept = [row for row in rows if not (row.startswith("6,") and row.split(",")[place])]
    assert len(kept) == len(rows) - 1
    (tmp_path / "run/metrics.csv").write_text("\n".join([head, *kept]) + "\n")
    assert Run.read(run).validation_loss > 0
    assert math.isnan(Run.read(tmp_path / "run").validation_loss)


def test_runs_that_have_nothing_to_say_yet_make_a_report(swept: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        shutil.copytree(swept / "context_length-16_positions-alibi_seed-0", folder)
        shutil.rmtree(folder / "length")
        (folder / "metrics.csv").unlink()
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}"))
        Status("running").write(folder)
    main(["report", str(tmp_path)])
    assert "2 runs: 2 killed" in (tmp_path / "report/report.md").read_text()
    main(["report", str(swept / "context_length-16_positions-alibi_seed-0"), "--output", str(tmp_path / "one")])
    assert "1 run: 1 finished" in (tmp_path / "one/report.md").read_text()


def test_the_report_holds_all_it_needs(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(swept), "--output", str(tmp_path / "report"), "--title", "lengths <and> more"])
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / f"report/report.{kind}") for kind in ("html", "md")]
    page = (tmp_path / "report/report.html").read_text()
    assert "lengths &lt;and&gt; more" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    headings = re.findall("<h2>(.*)</h2>", page)
    assert headings[:2] == ["Result", "What can&#39;t be concluded"]
    assert {"What was run", "Loss during training", "Effects on validation loss", "Does it hold?"} <= set(headings)
    assert headings[-1] == "How to repeat it"
    markdown = (tmp_path / "report/report.md").read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(pictures) == page.count("data:image/svg+xml") == 3
    assert all((tmp_path / "report" / name).stat().st_size > 5000 for name in pictures)
    assert page.count("<details>") == markdown.count("<details>") == 1  # all runs
    assert markdown.index("<summary>8 lines</summary>") > markdown.index("## All runs")
    assert "0.0 hours" not in markdown
    assert "one after another" not in markdown
    assert "No ratio: the shortest run trained for " in markdown
    assert "8 runs: 8 finished" in markdown
    assert re.search(r"\| model.positions \| learned \| alibi \|", markdown)


def test_runs_are_listed(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", str(swept), "--json"])
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert len(listed) == 8
    assert {each["state"] for each in listed} == {"finished"}
    main(["runs", str(swept)])
    assert capsys.readouterr().out.count("finished") == 8


def test_a_run_that_was_killed_is_called_so(swept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seed-9"
    shutil.copytree(swept / "context_length-16_positions-alibi_seed-0", folder)
    Status("running").write(folder)
    assert Run.read(folder).state == "killed"
    (folder / "status.json").write_text("{")
    assert (Run.read(folder).state, Run.read(folder).reason) == ("killed", "status.json is damaged")


def test_numbers_are_in_their_order(tmp_path: Path, swept: Path) -> None:
    for seed in (10, 9, 2):
        shutil.copytree(swept / "context_length-16_positions-alibi_seed-0", tmp_path / f"seed-{seed}")
    assert [run.path.name for run in find_runs([tmp_path])] == ["seed-2", "seed-9", "seed-10"]


@pytest.mark.parametrize(
    ("broken", "holds", "says"),
    [
        ("config.yaml", "{[", "config.yaml"),
        ("config.yaml", "batch_tokens: many", "is damaged"),
        ("versions.json", "{[", "is damaged"),
        ("versions.json", "[]", "is damaged"),
        ("versions.json", '{"began": 3}', "is damaged"),
        ("metrics.csv", "{[", "metrics.csv is damaged"),
    ],
)
def test_what_is_damaged_is_named(
    broken: str, holds: str, says: str, swept: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    shutil.copytree(swept / "context_length-16_positions-alibi_seed-0", tmp_path / "run")
    (tmp_path / "run" / broken).write_text(holds)
    assert says in refusal(main, ["report", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("broken", "holds", "says"),
    [
        ("config.yaml", "a: [", "config.yaml: "),
        ("config.yaml", "- a", "config.yaml is not a configuration"),
        ("config.yaml", "3", "config.yaml is not a configuration"),
        ("config.yaml", "batch_tokens: .inf", "config.yaml: batch_tokens=inf is not a count"),
        ("config.yaml", "seed: [1]", "config.yaml: seed=[1] is not a number"),
        ("config.yaml", "a: " + "[" * 3000, "config.yaml: "),
        ("config.yaml", "2026-11-28: 1", "config.yaml: keys must be str"),
        ("config.yaml", None, "config.yaml: not a regular file"),
        ("versions.json", "[]", "versions.json: not written by a run"),
        ("versions.json", "[" * 100_000, "versions.json: nested too deeply"),
        ("versions.json", '{"began": "soon"}', "versions.json: Invalid isoformat string: 'soon'"),
        ("versions.json", '{"command": 3}', "versions.json: not written by a run"),
        ("versions.json", None, "versions.json: not a regular file"),
        ("metrics.csv", "step,a\nnan,1\n", "metrics.csv: nan is not a step"),
        ("metrics.csv", "step,a\n1e300,1\n", "metrics.csv: 1e+300 is not a step"),
        ("metrics.csv", None, "not a regular file"),
        ("status.json", "[" * 100_000, "status.json is damaged"),
        ("status.json", None, "status.json is damaged"),
    ],
)
def test_one_bad_run_hides_no_other(
    broken: str, holds: str | None, says: str, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad", "good"):
        shutil.copytree(swept / "context_length-16_positions-alibi_seed-0", tmp_path / "runs" / name)
    file = tmp_path / "runs/bad" / broken
    file.unlink()
    if holds is None:
        os.mkfifo(file)
    else:
        file.write_text(holds)
    main(["runs", str(tmp_path / "runs")])
    listed = capsys.readouterr().out
    assert re.search(r"^ *good +finished", listed, re.MULTILINE)
    assert f"{tmp_path}/runs/bad: " in listed
    assert says in listed
    main(["runs", str(tmp_path / "runs"), "--json"])
    bad, good = json.loads(capsys.readouterr().out)["runs"]
    assert (good["state"], good["step"]) == ("finished", 6)
    assert says in bad["reason"]
    if bad["state"] == "damaged":
        with pytest.warns(results.DamagedWarning, match="runs/bad is damaged"):
            assert list(results.runs(tmp_path / "runs")["run"]) == ["good"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("config.yaml", "config.yaml: not a regular file"),
        ("metrics.csv", "not a regular file"),
        pytest.param("versions.json", "versions.json: not a regular file", marks=pytest.mark.slow),
    ],
)
def test_a_report_says_what_it_left_out(
    broken: str, says: str, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad", "good"):
        shutil.copytree(swept / "context_length-16_positions-alibi_seed-0", tmp_path / "runs" / name)
    (tmp_path / "runs/bad" / broken).unlink()
    os.mkfifo(tmp_path / "runs/bad" / broken)
    main(["report", str(tmp_path / "runs")])
    report = (tmp_path / "runs/report/report.md").read_text()
    assert "1 finished" in report
    assert says in report.partition("## What can't be read")[2]
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ('{"kind": "length"}', "no 'curves'"),
        ('{"kind": "length", "curves": 3}', "not iterable"),
        ('{"kind": "tasks", "tasks": [], "checkpoint": []}', "no attribute"),
        (None, "not a regular file"),
    ],
)
def test_one_bad_evaluation_hides_no_other(holds: str | None, says: str, swept: Path, tmp_path: Path) -> None:
    copied(swept / "context_length-16_positions-alibi_seed-0", tmp_path / "run")
    (tmp_path / "run/bad").mkdir()
    file = tmp_path / "run/bad/results.json"
    if holds is None:
        os.mkfifo(file)
    else:
        file.write_text(holds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", results.DamagedWarning)
        warnings.simplefilter("ignore", MissingResultsWarning)
        assert len(results.lengths(tmp_path)) == 3
        assert results.tasks(tmp_path).empty
    loaded = Loaded([tmp_path])
    lengths_of(loaded), tasks_of(loaded)
    (line,) = loaded.damaged.values()
    assert line.startswith(f"{file} is damaged: ")
    assert says in line
    main(["report", str(tmp_path)])
    report = (tmp_path / "report/report.md").read_text()
    assert line in report
    assert "## Does it hold?" in report


def test_names_are_text(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder's name can't inject control characters or HTML."""
    names = ["\x1b[31mred\x9b2J", "[bold]loud[/bold] [/]", "<script>alert(1)<|script>![x](http:evil)", "\udcff"]
    for number, name in enumerate(names):
        copied(swept / "context_length-16_positions-alibi_seed-0", tmp_path / "runs" / name)
        Status("failed", f"reason {number} {name}").write(tmp_path / "runs" / name)
    main(["runs", str(tmp_path / "runs")])
    listed = capsys.readouterr().out
    assert "\x1b" not in listed
    assert "\x9b" not in listed
    assert "[bold]loud[/bold] [/]" in listed
    main(["report", str(tmp_path / "runs"), "--title", "<img src=x>\x1b[0m"])
    for file in ("report.md", "report.html"):
        text = (tmp_path / "runs/report" / file).read_text()
        assert "[bold]loud[/bold] [/]" in text
        assert not re.search("<(script|img src=x)|[\x1b\x9b]", text)
    assert "](http" not in (tmp_path / "runs/report/report.md").read_text()


@pytest.mark.parametrize("words", [["runs", "nowhere"], ["report", "nowhere"], ["runs", "."]])
def test_where_there_is_no_run_that_is_said(
    words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give the output of train.py" in refusal(main, words)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_report_without_complaint(width: int, swept: Path, tmp_path: Path) -> None:
    main(["report", str(swept), "--output", str(tmp_path)])
    measured = "<script>document.title = `${innerWidth} ${document.documentElement.scrollWidth}`</script></body>"
    page = tmp_path / "measured.html"
    page.write_text((tmp_path / "report.html").read_text().replace("</body>", measured))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    options += ["--enable-logging=stderr", f"--window-size={width},900", "--hide-scrollbars"]
    shown = subprocess.run(
        ["chromium", *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=100
    )
    assert "CONSOLE" not in shown.stderr
    inner, needed = map(int, re.search(r"<title>(\d+) (\d+)</title>", shown.stdout).groups())
    assert needed <= inner, "the page is wider than the window"
    assert inner <= max(width, 500)  # the least that some versions of the browser take


def test_prose_keeps_code_and_numbers_whole() -> None:
    shown = _prose("Put `seed=` first: <b> p = 0.59, a ratio of × 0.98 in 60 s.")
    assert shown == "Put <code>seed=</code> first: &lt;b&gt; p = 0.59, a ratio of × 0.98 in 60 s.".replace(
        "p = 0.59", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.59"
    ).replace("× 0.98", "×\N{NO-BREAK SPACE}0.98").replace("60 s", "60\N{NO-BREAK SPACE}s")


def test_numbers_of_a_column_have_as_many_decimals() -> None:
    assert _column([6.97, 6.955, math.nan, -2.0]) == ["6.970", "6.955", "", "−2.000"]
    assert _column([0.001, 0.0003, 2e-5]) == ["0.001", "0.0003", "2e-05"]
    assert _column([1.0, "a-b", None, 3]) == ["1", "a-b", "", "3"]

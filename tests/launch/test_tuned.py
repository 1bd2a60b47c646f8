"""Tuned sweeps: each arm chooses its learning rate on a seed of its own, and trains the others at it."""

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gptstar.entry import compose
from gptstar.errors import ConfigError
from gptstar.launch.tuned import Design, choose, tuning_loss
from gptstar.results import lengths
from gptstar.results.run import Run, find_runs
from support.runs import child_of, run_script, started, wait_for

Overrides = Callable[..., list[str]]
RATES = "optimizer.learning_rate=1e-4,1e-2"


def design(*words: str, seed: int = 100, more: dict[str, object] | None = None) -> Design:
    return Design.of(OverridesParser.create().parse_overrides(list(words)), "optimizer.learning_rate", seed, more)


FACTORS = ("model.positions=alibi,none", "data.context_length=32,64")


def test_all_tuning_comes_first_and_then_the_arms_seed_by_seed() -> None:
    made = design("total_steps=5", *FACTORS, RATES, "seed=0,1,2", more={"model.positions": "none", "seed": "3,4"})
    tuning = made.tuning_jobs()
    assert len(tuning) == 4 * 2
    assert tuning[0][:5] == [
        *("total_steps=5", "model.positions=alibi", "data.context_length=32", "optimizer.learning_rate=0.0001"),
        "seed=100",
    ]
    assert {"tags=[tuning]", "reading.multiples=[]", "final_studies=[]"} <= {*tuning[0]}
    jobs = made.seed_jobs(dict.fromkeys(made.arms, "0.01"))
    assert [job[-1] for job in jobs] == [f"seed={seed}" for seed in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4)]
    assert all("optimizer.learning_rate=0.01" in job and "tags=[tuning]" not in job for job in jobs)
    assert all("model.positions=none" in job for job in jobs[-4:])
    assert made.n_jobs == len(tuning) + len(jobs)
    assert "8 tuning runs" in made.summary()
    assert "3 seeds of 2 arms and 5 seeds of 2 arms" in made.summary()


def test_an_arm_that_chose_nothing_trains_no_seed() -> None:
    made = design(*FACTORS, RATES, "seed=0,1")
    assert len(made.seed_jobs({made.arms[1]: "0.01"})) == 2
    assert made.seed_jobs({}) == []


def test_tuning_reads_nothing_beyond_validation_whatever_else_is_asked_for() -> None:
    made = design("reading.multiples=[1,2]", "tags=[mine]", *FACTORS, RATES, "seed=0,1")
    assert [word for word in made.tuning_jobs()[0] if "reading.multiples" in word] == ["reading.multiples=[]"]
    assert "tags=[tuning]" in made.tuning_jobs()[0]
    assert "tags=[mine]" in made.seed_jobs({made.arms[0]: "0.01"})[0]


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        ((*FACTORS, "seed=0,1"), None, "chooses among values of optimizer.learning_rate: give several"),
        ((*FACTORS, RATES), None, "trains several seeds at the chosen value"),
        ((*FACTORS, RATES, "seed=3"), None, "trains several seeds at the chosen value"),
        ((RATES, "seed=0,0"), None, "seed=0 is given twice"),
        (("optimizer.learning_rate=1e-3,0.001", "seed=0,1"), None, "optimizer.learning_rate=0.001 is given twice"),
        ((*FACTORS, RATES, "seed=0,1"), {"model.positions": "none", "seed": "3,3"}, "seed 3 is given twice"),
        ((RATES, "seed=0,100"), None, "tuning_seed=100 is among the seeds that count"),
        (("model.positions=interval(0,1)", RATES, "seed=0,1"), None, "model.positions names no values"),
        ((*FACTORS, RATES, "seed=0,1"), {"seed": "3"}, "name the arms and their further seeds"),
        ((*FACTORS, RATES, "seed=0,1"), {"model": "tiny", "seed": "3"}, "model is not swept"),
        (
            (*FACTORS, RATES, "seed=0,1"),
            {"model.positions": "none", "seed": "100"},
            "tuning_seed=100 is among the seeds that count",
        ),
    ],
)
def test_a_design_that_can_not_be_run_is_refused(
    words: tuple[str, ...], more: dict[str, object] | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        design(*words, more=more)


def test_the_lowest_loss_is_chosen_and_an_edge_is_said() -> None:
    made = design(*FACTORS, "optimizer.learning_rate=1e-3,2e-3,4e-3", "seed=0,1")
    arm = made.arms[0]
    value, line = choose(made, arm, {"0.001": 4.2, "0.002": 4.1, "0.004": 4.3})
    assert value == "0.002"
    assert line == (
        "model.positions=alibi, data.context_length=32: optimizer.learning_rate=0.002 has the lowest validation loss "
        "(0.001: 4.2000, 0.002: 4.1000, 0.004: 4.3000)"
    )
    value, line = choose(made, arm, {"0.001": 4.2, "0.002": 4.1, "0.004": 4.0})
    assert value == "0.004"
    assert line.endswith("; it is the highest value tried: add one beyond it")
    value, line = choose(made, arm, {"0.001": 4.2, "0.002": math.inf, "0.004": math.inf})
    assert value == "0.001"
    assert line.endswith("; it is the lowest value tried: add one beyond it")
    assert choose(made, arm, {"0.001": 4.2, "0.002": math.nan, "0.004": 4.0})[0] is None
    assert choose(made, arm, dict.fromkeys(made.values, math.inf))[0] is None


def test_a_run_is_judged_by_its_own_text(trained_once: Callable[..., Path], tmp_path: Path) -> None:
    run = Run.read(trained_once())
    row = next(row for row in reversed(run.rows) if "validation/loss" in row)
    alpha, beta = row["validation/alpha/loss"], row["validation/beta/loss"]
    assert alpha != beta
    assert tuning_loss(run) == run.validation_loss
    assert tuning_loss(run, ["alpha"]) == beta
    assert tuning_loss(run, ["recall"]) == (alpha + beta) / 2


def small_study(overrides: Overrides, *more: str, output: str = "run") -> list[str]:
    """Two kinds, two rates, two seeds: eight runs of a few steps, which read twice as far as they were trained."""
    words = ("total_steps=6", "schedule.warmup_steps=1", "validate_every=3", "reading.multiples=[1,2]")
    return [
        *overrides(*words, output=output),
        *("hydra/sweeper=tuned", "model.positions=alibi,none", RATES, "seed=0,1", "reading.max_tokens=256"),
        *more,
    ]


@pytest.mark.slow
def test_a_small_study_is_killed_goes_on_and_is_restored_from_its_table(overrides: Overrides, tmp_path: Path) -> None:
    table = tmp_path / "docs/study.jsonl"
    words = small_study(overrides, f"hydra.sweeper.table={table}", "final_studies=[heads]")
    process = started(words)
    wait_for(process, tmp_path / "run", "positions-alibi_learning_rate-*_seed-0/metrics.csv")

    other = run_script("train.py", ["-m", *words])
    assert other.returncode == 1
    assert other.stderr.strip().splitlines()[-1].endswith("is in use by another sweep: wait for it, or choose another")

    child = child_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    while Path(f"/proc/{child}").exists():
        time.sleep(0.05)
    finished = {run.path.name for run in find_runs([tmp_path / "run"]) if run.state == "finished"}
    assert sum("seed-100" in name for name in finished) == 4

    again = run_script("train.py", ["-m", *words])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished already: skipped") == len(finished)
    assert "job 8 of 8" in again.stdout
    chosen = dict(re.findall(r"model.positions=(\w+): optimizer.learning_rate=([\d.e-]+) has the lowest", again.stdout))
    assert set(chosen) == {"alibi", "none"}
    assert again.stdout.count("value tried: add one beyond it") == 2  # of two, one is always at an end
    runs = {run.path.name: run for run in find_runs([tmp_path / "run"])}
    assert len(runs) == 8
    for kind, rate in chosen.items():
        tuned = {
            run.validation_loss: run.config["optimizer"]["learning_rate"]
            for run in runs.values()
            if run.tags == ("tuning",) and run.config["model"]["positions"] == kind
        }
        assert tuned[min(tuned)] == float(rate)
        counted = [run for run in runs.values() if not run.tags and run.config["model"]["positions"] == kind]
        assert {run.config["optimizer"]["learning_rate"] for run in counted} == {float(rate)}
        assert {run.config["seed"] for run in counted} == {0, 1}
        assert all((run.path / "heads/results.json").exists() for run in counted)
    assert not list((tmp_path / "run").glob("*seed-100/length"))

    lines = table.read_text().splitlines()
    assert len(lines) == 1 + 8
    assert str(tmp_path / "run") not in table.read_text()
    elsewhere = small_study(overrides, f"hydra.sweeper.table={table}", "final_studies=[heads]", output="elsewhere")
    restored = run_script("train.py", ["-m", *elsewhere])
    assert restored.returncode == 0, restored.stderr
    assert "restored 8 finished runs" in restored.stdout
    assert restored.stdout.count(f"finished, in {table}: skipped") == 8
    assert not list((tmp_path / "elsewhere").rglob("*.ckpt"))
    assert table.read_text().splitlines() == lines
    before, after = (
        lengths(tmp_path / folder).sort_values(["run", "context_length"]) for folder in ("run", "elsewhere")
    )
    assert list(before["run"]) == list(after["run"])
    assert before["loss"].tolist() == pytest.approx(after["loss"].tolist(), rel=1e-5)

    changed = run_script("train.py", ["-m", *elsewhere, "optimizer.weight_decay=0.5"])
    assert changed.returncode == 1
    assert "study.jsonl is a run of other settings: optimizer.weight_decay (there 0.1, here 0.5)" in changed.stderr
    assert changed.stdout.count("no value is chosen") == 2  # by runs of other settings
    assert len(find_runs([tmp_path / "elsewhere"])) == 8


@pytest.mark.slow
def test_a_table_of_another_text_is_refused(overrides: Overrides, tmp_path: Path) -> None:
    table = tmp_path / "study.jsonl"
    words = small_study(overrides, f"hydra.sweeper.table={table}", "total_steps=2", "reading.multiples=[]")
    done = run_script("train.py", ["-m", *words])
    assert done.returncode == 0, done.stderr
    text = tmp_path / "text/gamma"
    text.mkdir(parents=True)
    (text / "part.jsonl").write_text("\n".join(json.dumps({"text": f"{n} other words " * 40}) for n in range(60)))
    words = [word for word in words if not word.startswith(("data.files", "output"))]
    other = run_script("train.py", ["-m", *words, f"data.files={text}/*.jsonl", f"output={tmp_path / 'other'}"])
    assert other.returncode == 1
    assert "the text (its fingerprint is " in other.stderr
    assert not list((tmp_path / "other").rglob("*.ckpt"))


@pytest.mark.slow
def test_tuning_jobs_share_the_machine(overrides: Overrides, tmp_path: Path) -> None:
    words = small_study(overrides, "jobs_at_once=2", "total_steps=2", "reading.multiples=[]")
    done = run_script("train.py", ["-m", *words])
    assert done.returncode == 0, done.stderr
    assert len([run for run in find_runs([tmp_path / "run"]) if run.state == "finished"]) == 8
    last_tuned = max(path.stat().st_mtime for path in (tmp_path / "run").glob("*_seed-100/status.json"))
    assert all(path.stat().st_mtime > last_tuned for path in (tmp_path / "run").glob("*_seed-[01]/versions.json"))


@pytest.mark.slow
def test_an_arm_whose_rates_all_diverge_is_left_out_and_the_others_go_on(overrides: Overrides, tmp_path: Path) -> None:
    words = small_study(overrides, "reading.multiples=[]", "total_steps=12", "optimizer.learning_rate=1e-3,1e30")
    done = run_script("train.py", ["-m", *words])
    assert done.returncode == 1
    assert "2 of 8 jobs failed" in done.stderr
    assert done.stdout.count("1e+30: inf") == 2
    assert len([run for run in find_runs([tmp_path / "run"]) if run.state == "finished"]) == 6


def test_the_reference_study_composes() -> None:
    for name in ("extrapolation", "extrapolation_long", "extrapolation_gpt127"):
        composed = compose("train", [f"experiment={name}", "data.files=x"])
        assert composed.final_studies == ["recall", "heads"]

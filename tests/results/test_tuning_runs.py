"""Runs that chose a learning rate for others count for nothing else: on a tuned sweep written by hand."""

import itertools
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from gptstar import results
from gptstar.cli import main
from gptstar.results.answer import findings_on_lengths
from gptstar.results.arms import RATE
from gptstar.results.frames import AT_EDGE
from gptstar.results.run import Run
from gptstar.results.tried import counted
from gptstar.training.status import Status

BEST = {("alibi", 32): 0.01, ("alibi", 64): 0.003, ("rotary", 32): 0.01, ("rotary", 64): 0.01}
"""The best rate by arm; that of `alibi` at 64 tokens is the lowest tried."""
RATES = (0.003, 0.01, 0.03)


def written(folder: Path, loss: float, *, tags: tuple[str, ...] = (), seed: int = 0, **settings: object) -> Path:
    folder.mkdir(parents=True)
    tree = {"seed": seed, "tags": list(tags), "total_steps": 300, "batch_tokens": 100, **settings}
    (folder / "config.yaml").write_text(json.dumps(tree))
    (folder / "versions.json").write_text(json.dumps({"began": "2026-11-01T00:00:00+00:00", "data": "a"}))
    rows = f"step,tokens,tokens_per_second,validation/loss\n150,15000,100,{loss + 1}\n300,30000,100,{loss}\n"
    (folder / "metrics.csv").write_text(rows)
    Status("finished").write(folder)
    return folder


def sweep(folder: Path, n_seeds: int, key: str = "learning_rate") -> Path:
    """Two kinds of positions at two training contexts: three values of a key on seed 100, then seeds at the best."""
    for (positions, context), best in BEST.items():
        arm = {"model": {"positions": positions}, "data": {"context_length": context}}
        base = 3.0 + 0.1 * (positions == "alibi") - 0.001 * context
        for value in RATES:
            where = folder / f"{positions}-{context}-{value}-100"
            loss = base + 2 + abs(value - best)
            written(where, loss, tags=("tuning",), seed=100, optimizer={key: value}, **arm)
        for seed in range(n_seeds):
            where = folder / f"{positions}-{context}-{seed}"
            written(where, base + 0.01 * seed, seed=seed, optimizer={key: best}, **arm)
    return folder


def report(folder: Path) -> str:
    main(["report", str(folder)])
    return (folder / "report/report.md").read_text()


@pytest.mark.parametrize("n_seeds", [2, 4])
def test_a_report_counts_the_seeds_without_the_one_that_chose(n_seeds: int, tmp_path: Path) -> None:
    said = report(sweep(tmp_path / "study", n_seeds))
    assert f"There are {n_seeds} seeds, so every effect is preliminary" in said
    assert "Only one learning rate was tried" not in said
    assert "The same seeds chose the rate" not in said
    assert "Each arm is at the learning rate that it chose by runs of another seed" in said
    assert "rotary has the lowest validation loss" in said
    assert "each arm at its best learning rate." in said
    losses = re.findall(r"^\| (alibi|rotary) \| (32|64) \| .* \| (\d+) \|(?: [^|]*\|)?$", said, flags=re.MULTILINE)
    assert {seeds for *_, seeds in losses} == {str(n_seeds)}
    assert "12 tuning" not in said
    assert f"{12 + 4 * n_seeds} runs: " in said  # hours are those of all


def test_learning_rates_are_compared_on_the_seed_that_chose_alone(tmp_path: Path) -> None:
    said = report(sweep(tmp_path / "study", 2))
    assert "From the runs that chose a value, whose seed counts for nothing else." in said
    assert "| alibi | 32 | 5.075 | 5.068 | 5.088 | 0.01 |  |" in said
    assert "| alibi | 64 | 5.036 | 5.043 | 5.063 | 0.003 | at the end of its rates |" in said
    assert "0.003, is the lowest of the 3 tried" in said


def test_the_rate_that_arms_chose_is_not_a_factor_and_its_edge_is_known(tmp_path: Path) -> None:
    runs = results.runs(sweep(tmp_path / "study", 2))
    assert RATE in results.varied(runs)
    left = counted(runs)
    assert results.varied(left) == ["model.positions", "data.context_length", "seed"]
    assert len(left) == 8
    at_edge = left.groupby(["model.positions", "data.context_length"])[AT_EDGE].all()
    assert [arm for arm, is_at_edge in at_edge.items() if is_at_edge] == [("alibi", 64)]
    effects = results.effects(runs)
    assert set(effects["seeds"]) == {2}


def test_a_rate_that_comes_before_its_arm_follows_from_it_all_the_same(tmp_path: Path) -> None:
    runs = results.runs(sweep(tmp_path / "study", 2))
    first = [RATE, *runs.columns.drop(RATE)]
    assert results.varied(counted(runs[first])) == ["model.positions", "data.context_length", "seed"]


def test_an_arm_with_two_best_rates_is_one_arm_beyond_its_training_context(tmp_path: Path) -> None:
    runs = counted(results.runs(sweep(tmp_path / "study", 2)))
    lines = [
        {
            "run": run["run"],
            "study": "s",
            "scaling": "none",
            "context": "full",
            "multiple": multiple,
            "trained_at": run["data.context_length"],
            "context_length": multiple * run["data.context_length"],
            "loss": 3 + 0.01 * multiple,
            "reference": run["data.context_length"],
            "change_low": 0,
            "change_high": 0,
        }
        for (_, run), multiple in itertools.product(runs.iterrows(), (1, 2))
    ]
    said = list(findings_on_lengths(runs, pd.DataFrame(lines), results.varied(runs)))
    of_arms = [re.findall(r"the loss of (\w+), averaged over 2 training contexts, changes", line) for line in said]
    assert of_arms == [["alibi"], ["rotary"]]


def test_runs_that_chose_another_setting_are_left_out_too(tmp_path: Path) -> None:
    runs = counted(results.runs(sweep(tmp_path / "study", 2, key="weight_decay")))
    assert set(runs["seed"]) == {0, 1}
    assert results.varied(runs) == ["model.positions", "data.context_length", "seed"]


def test_without_others_the_runs_that_chose_are_shown(tmp_path: Path) -> None:
    runs = results.runs(sweep(tmp_path / "study", 0))
    assert counted(runs) is runs
    assert "| alibi | 32 | 5.075 | 5.068 | 5.088 | 0.01 |  |" in report(tmp_path / "study")


@pytest.mark.parametrize(("tags", "is_tuning"), [(("fine-tuning",), False), (("a", "tuning"), True), ((), False)])
def test_only_the_tag_itself_counts(tags: tuple[str, ...], is_tuning: bool, tmp_path: Path) -> None:
    assert Run.read(written(tmp_path / "run", 3.0, tags=tags)).is_tuning is is_tuning

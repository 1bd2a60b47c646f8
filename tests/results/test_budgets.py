"""Reports on recipes, from made-up runs with a known cost to reach each other's losses."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest
from scipy import stats

from gptstar import results
from gptstar.cli import main
from gptstar.results import frames
from gptstar.results.arms import RATE
from gptstar.results.budgets import BEFORE, NEVER, WITHIN, costs, reached, recipes
from gptstar.results.extrapolation import between_arms
from gptstar.results.figures import budgets_figure
from gptstar.results.tried import values_tried
from gptstar.training.status import Status
from support.runs import run_script

REFERENCES, RECIPES, WORSE = (5.0, 5.2, 5.1), (4.9, 5.05, 5.05), (5.1, 5.2, 5.3)
SEEDS = (2, 3, 4)


def write_run(
    folder: Path, name: str, seed: int, steps: int, losses: Sequence[float], *, speed: float = 100, **settings: float
) -> Path:
    """Write a finished run of 100 tokens per step, with regular validations and a tenth of its steps for warm-up."""
    path = folder / f"experiment-{name}_seed-{seed}"
    path.mkdir(parents=True)
    tree = {
        "name": name,
        "seed": seed,
        "total_steps": steps,
        "batch_tokens": 100,
        "schedule": {"warmup_steps": max(1, round(steps / 10))},
        "optimizer": {"beta1": 0.9, "learning_rate": 1e-3} | settings,
    }
    (path / "config.yaml").write_text(json.dumps(tree))
    (path / "versions.json").write_text(
        json.dumps({"began": f"2026-11-01T00:00:{len(list(folder.iterdir())):02}+00:00"})
    )
    rows = [f"{steps},{steps * 100},{speed},"]
    rows += [f"{steps * (at + 1) // len(losses)},,,{loss}" for at, loss in enumerate(losses)]
    (path / "metrics.csv").write_text("\n".join(["step,tokens,tokens_per_second,validation/loss", *rows]) + "\n")
    Status("finished").write(path)
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Write a study of three seeds: the recipe needs 0.4 of the tokens and half the time, and is 0.3 worse at 0.2."""
    folder = tmp_path / "study"
    for at, seed in enumerate(SEEDS):
        write_run(folder, "reference", seed, 100, [REFERENCES[at]])
        write_run(folder, "recipe", seed, 40, [RECIPES[at]], speed=80, beta1=0.7)
        write_run(folder, "short", seed, 20, [RECIPES[at] + 0.3], speed=80, beta1=0.7)
        write_run(folder, "worse", seed, 40, [WORSE[at]], speed=80, beta1=0.8)
    return folder


def report(folder: Path, *words: str) -> str:
    main(["report", str(folder), *words])
    return (folder / "report/report.md").read_text()


def test_experiments_that_differ_in_many_keys_are_one_factor(study: Path) -> None:
    runs = frames.runs(study)
    assert frames.varied(runs) == ["experiment", "seed"]
    assert list(runs["experiment"].unique()) == ["recipe", "reference", "short", "worse"]


def test_experiments_in_folders_of_their_own_differ_by_their_settings(tmp_path: Path) -> None:
    """Two sweeps that are read together don't count as a sweep over experiments."""
    for name, beta1 in (("one", 0.8), ("two", 0.9)):
        for seed in SEEDS:
            write_run(tmp_path / name, name, seed, 10, [5.0], beta1=beta1)
    assert frames.varied(frames.runs(tmp_path)) == ["optimizer.beta1", "seed"]


def test_a_recipe_at_another_budget_is_the_same_recipe(study: Path) -> None:
    found = recipes(frames.runs(study), "experiment", ["experiment", "seed"])
    assert [each.name for each in found] == ["reference", "short, recipe", "worse"]
    assert [each.budgets for each in found] == [[10_000], [2_000, 4_000], [4_000]]


@pytest.mark.parametrize(("warmup", "same"), [(4, True), (8, False)])
def test_a_schedule_out_of_proportion_is_another_recipe(warmup: int, same: bool, study: Path) -> None:
    for seed in SEEDS:
        file = write_run(study, "longer", seed, 40 + 2, [5.0], beta1=0.7) / "config.yaml"
        assert '"warmup_steps": 4' in file.read_text()
        file.write_text(file.read_text().replace('"warmup_steps": 4', f'"warmup_steps": {warmup}'))
    found = recipes(frames.runs(study), "experiment", ["experiment", "seed"])
    assert ("short, recipe, longer" in [each.name for each in found]) is same


def test_levels_of_a_setting_are_recipes_of_their_own_at_every_budget() -> None:
    lines = [
        {"optimizer.beta1": beta1, "total_steps": steps, "seed": 0, "tokens": 100 * steps, "validation_loss": 5.0}
        for beta1 in (0.7, 0.9)
        for steps in (10, 20)
    ]
    found = recipes(pd.DataFrame(lines), "optimizer.beta1", ["optimizer.beta1", "total_steps", "seed"])
    assert [(each.name, each.budgets) for each in found] == [("0.7", [1000, 2000]), ("0.9", [1000, 2000])]


def known_shares() -> tuple[float, float, float]:
    """Return the true shares: 0.3 nats lie between 0.2 and 0.4 of the tokens, and references 0.1, 0.15, 0.05 higher."""
    logs = [math.log(0.4) - math.log(2) * above / 0.3 for above in (0.1, 0.15, 0.05)]
    interval = stats.ttest_1samp(logs, 0).confidence_interval()
    return math.exp(mean(logs)), math.exp(interval.low), math.exp(interval.high)


def test_tokens_to_the_references_loss_are_paired_by_seed(study: Path) -> None:
    runs = frames.runs(study)
    reference, *others = recipes(runs, "experiment", ["experiment", "seed"])
    found, worse = costs([reference, *others], reference, frames.curves(study))
    share = found.tokens.share
    assert share is not None
    assert [math.exp(each) for each in (share.value, share.low, share.high)] == pytest.approx(known_shares())
    # At 80 tokens a second instead of 100, each token takes 1.25 of the reference's time.
    hours = found.hours.share
    assert hours is not None
    assert math.exp(hours.value) == pytest.approx(1.25 * known_shares()[0])
    assert worse.tokens.seeds == {WITHIN: 0, BEFORE: 1, NEVER: 2}


def test_a_bound_is_not_averaged() -> None:
    curves = {0: [(10.0, 5.0), (20.0, 4.0)], 1: [(10.0, 4.0), (20.0, 3.0)], 2: [(10.0, 6.0), (20.0, 5.5)], 3: []}
    found = reached(curves, dict.fromkeys((0, 1, 2), (40.0, 4.5)))
    assert found.share is None
    assert found.text == "1 of 3 began below it, 1 of 3 never reached it"
    alone = reached(curves, {0: (40.0, 4.5), 9: (40.0, 4.5)})  # of seed 9 there is no curve
    assert alone.text == f"× {math.sqrt(200) / 40:.3f}"


def test_a_recipe_with_one_budget_is_read_along_the_way(tmp_path: Path) -> None:
    """The first reaches 5.0 halfway, in the logarithm, between its validations at 1,000 and 4,000 tokens."""
    for seed in (0, 1):
        write_run(tmp_path, "slow", seed, 100, [5.5, 5.0])
        write_run(tmp_path, "fast", seed, 40, [5.5, 4.9, 4.7, 4.5], speed=200, beta1=0.7)
    found = recipes(frames.runs(tmp_path), "experiment", ["experiment", "seed"])
    slow = next(each for each in found if each.name == "slow")
    assert budgets_figure(found) is None
    (cost,) = costs(found, slow, frames.curves(tmp_path))
    tokens = math.exp(math.log(1000) + math.log(2) * (0.5 / 0.6))
    assert cost.tokens.share is not None
    assert math.exp(cost.tokens.share.value) == pytest.approx(tokens / 10_000)
    assert cost.hours.share is not None
    assert math.exp(cost.hours.share.value) == pytest.approx(tokens / 20_000)


def test_runs_without_a_speed_are_compared_by_their_tokens(tmp_path: Path) -> None:
    for seed in SEEDS:
        write_run(tmp_path / "study", "slow", seed, 100, [5.5, 5.0], speed=0)
        write_run(tmp_path / "study", "fast", seed, 40, [5.5, 4.9], speed=0, beta1=0.7)
    tokens = math.exp(math.log(2000) + math.log(2) * (0.5 / 0.6)) / 10_000
    assert f"| fast | 0.004 | × {tokens:.3f} [{tokens:.3f}, {tokens:.3f}] | preliminary |  |  | 3 |" in report(
        tmp_path / "study"
    )


def test_a_seed_that_lacks_a_budget_is_left_out(study: Path) -> None:
    runs = frames.runs(study)
    runs = runs[~((runs["experiment"] == "short") & (runs["seed"] == 3))]
    reference, *others = recipes(runs, "experiment", ["experiment", "seed"])
    assert costs([reference, *others], reference, frames.curves(study))[0].tokens.seeds.total() == 2


def test_the_report_says_what_the_runs_do(study: Path) -> None:
    said = report(study)
    assert "## Tokens and hours to the loss of experiment=reference\n" in said
    assert "![Tokens and hours to the loss of experiment=reference](report-" in said
    value, low, high = known_shares()
    hours = " ".join(f"{1.25 * each:.3f}" for each in (value, low, high)).split()
    row = "| short, recipe | 0.002, 0.004 | × {:.3f} [{:.3f}, {:.3f}] | preliminary | × {} [{}, {}] | preliminary | 3 |"
    assert row.format(value, low, high, *hours) in said
    theirs = stats.ttest_rel(RECIPES, REFERENCES)
    interval = theirs.confidence_interval()
    effect = f"| experiment | recipe | reference | −0.100 [−{-interval.low:.3f}, {interval.high:+.3f}] |"
    assert f"{effect} {theirs.pvalue:.2g} | 3 |" in said
    assert "| experiment | recipe | reference | × 0.500 [0.500, 0.500] |" in said  # hours of training
    assert f"| recipe | 0.004 | 50 s | 50 s | {mean(RECIPES):.1f} | {stdev(RECIPES):.3f} | 3 |" in said


def test_the_report_compares_with_the_level_that_was_asked_for(study: Path, refusal: Callable[..., str]) -> None:
    said = report(study, "--against", "worse")
    theirs = stats.ttest_rel(RECIPES, WORSE).confidence_interval()
    ends = f"[{theirs.low:+.3f}, {theirs.high:+.3f}]"
    effect = f"| experiment | recipe | worse | {mean(RECIPES) - mean(WORSE):+.3f} {ends} |"
    assert effect.replace("-", "−") in said.replace("-", "−")
    assert "| experiment | worse |" not in said
    assert "## Tokens and hours to the loss of experiment=worse\n" in said
    refused = refusal(main, ["report", str(study), "--against", "nothing"])
    assert "--against nothing: no factor has this level; known levels: reference, recipe, short, worse" in refused


def test_a_loss_that_was_reached_before_the_first_validation_is_a_bound(tmp_path: Path) -> None:
    for name, losses, beta1 in (("slow", [6.0, 5.0], 0.8), ("fast", [4.5, 4.0], 0.9)):
        write_run(tmp_path, name, 0, 10_000, losses, beta1=beta1)
    said = report(tmp_path)
    assert "million tokens to 5.000 |" in said
    assert re.search(r"^\| fast \| .* \| ≤ 0.500 \|$", said, re.MULTILINE)
    assert re.search(r"^\| slow \| .* \| 1.00 \|$", said, re.MULTILINE)
    assert "≤: at the first validation already" in said


def test_a_learning_rate_search_has_no_recipes_to_compare(tmp_path: Path) -> None:
    for rate in (0.001, 0.002, 0.004):
        run = write_run(tmp_path, "one", 0, 100, [6.0, 5.0 + rate], learning_rate=rate)
        run.rename(run.with_name(f"one_learning_rate-{rate}"))
    said = report(tmp_path)
    assert "## Loss during training" in said
    assert "## Tokens and hours" not in said


def tuning(losses: dict[tuple[str, float], float]) -> pd.DataFrame:
    lines = [(arm, rate, seed, loss + seed) for (arm, rate), loss in losses.items() for seed in (0, 1)]
    return pd.DataFrame(lines, columns=["arm", RATE, "seed", "validation_loss"])


def test_a_best_rate_is_at_the_end_of_its_own_grid() -> None:
    """Each arm has its own grid: 2e-3 is inside the joint grid, but at the end of b's."""
    losses = {
        ("a", 1e-3): 5.0,
        ("a", 2e-3): 4.0,
        ("a", 4e-3): 5.0,
        ("b", 1e-3): 5.0,
        ("b", 2e-3): 4.0,
        ("c", 9e-3): 3.0,
    }
    tried = {each.arm: each for each in values_tried(tuning(losses), RATE, ["arm", RATE, "seed"])}
    assert {arm: each.best for arm, each in tried.items()} == {"a": 2e-3, "b": 2e-3, "c": 9e-3}
    assert {arm: each.is_at_edge for arm, each in tried.items()} == {
        "a": False,
        "b": True,
        "c": False,
    }  # c has no other
    assert [loss for each in tried.values() for loss in each.values["mean"]] == [each + 0.5 for each in losses.values()]


def test_hours_are_not_compared_where_arms_did_not_take_turns(tmp_path: Path) -> None:
    for at, arm in enumerate(("reference", "recipe")):
        for seed in SEEDS:
            write_run(tmp_path / "study", arm, seed, 40, [5.5 - at, 5.0 - at], beta1=0.9 - at / 10)
    said = report(tmp_path / "study")
    assert "## Tokens to the loss of experiment=reference\n" in said
    assert "Hours are not compared, because the arms did not take turns" in said
    assert "| recipe | million tokens | tokens | verdict on tokens | seeds |" in said


def test_a_run_that_diverged_is_left_out_of_the_report(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "study", "good", seed, 10, [5.5, 5.0], beta1=0.8)
        write_run(tmp_path / "study", "bad", seed, 10, [5.5, math.inf], speed=math.inf)
    said = report(tmp_path / "study")
    assert "2 of 4 runs are left out: 2 finished without a validation loss that is a number." in said
    assert "![Loss during training]" in said
    main(["runs", str(tmp_path / "study")])


@pytest.mark.parametrize(("best", "edge"), [(0.004, "at the end of its rates"), (0.002, "")])
def test_the_report_has_the_loss_at_every_rate(best: float, edge: str, tmp_path: Path) -> None:
    losses = {rate: 5.0 if rate == best else 5.5 + rate for rate in (1e-3, 2e-3, 4e-3)}
    for name, beta1 in (("one", 0.8), ("two", 0.9)):
        for rate, loss in losses.items():
            run = write_run(tmp_path / "tuning", name, 100, 10, [loss], learning_rate=rate, beta1=beta1)
            run.rename(run.with_name(f"{name}_learning_rate-{rate}"))
    said = report(tmp_path / "tuning")
    assert "| experiment | 0.001 | 0.002 | 0.004 | best |  |" in said
    cells = " | ".join(f"{loss:.4g}" for loss in losses.values())
    for name in ("one", "two"):
        assert f"| {name} | {cells} | {best:g} | {edge} |" in said
    assert ("a rate beyond may be better" in said) is bool(edge)


READ = {1.0: (5.0, 5.3, 5.1), 8.0: (5.1, 5.5, 5.2)}, {1.0: (4.9, 5.1, 5.2), 8.0: (4.8, 5.2, 5.1)}
"""Losses of references and recipes by the multiple of their training context."""


def write_reading(run: Path, losses: dict[float, float]) -> None:
    """Write a length study into the folder of its run."""
    lengths = [
        {
            "context_length": int(64 * multiple),
            "loss": {"value": loss, "low": loss, "high": loss},
            "perplexity": {"value": math.exp(loss)},
            "bits_per_byte": None,
            "tokens": 100,
        }
        for multiple, loss in losses.items()
    ]
    checkpoint = {"path": str(run / "last.ckpt"), "sha256": run.name}
    curve = {"checkpoint": checkpoint, "trained_at": 64, "rotary_scaling": "none", "lengths": lengths}
    curve |= {"reference": 64, "targets": "5d41402abc4b2a76"}
    tree = {
        "kind": "length",
        "protocol": {"protocol": "fixed_targets"},
        "text": {"fingerprint": "x"},
        "curves": [curve],
    }
    (run / "reading").mkdir()
    (run / "reading" / "results.json").write_text(json.dumps(tree))


@pytest.mark.slow
def test_losses_beyond_the_training_context_are_compared_by_seed(study: Path) -> None:
    for name, losses in zip(("reference", "recipe"), READ, strict=True):
        for at, seed in enumerate(SEEDS):
            read = {multiple: of_seeds[at] for multiple, of_seeds in losses.items()}
            write_reading(study / f"experiment-{name}_seed-{seed}", read)
    table = between_arms(frames.runs(study), results.lengths(study), ["experiment", "seed"])
    assert list(table["context"]) == ["1 ×", "8 ×"]
    for line, multiple in zip(table.to_dict("records"), (1.0, 8.0), strict=True):
        theirs, ours = (losses[multiple] for losses in READ)
        interval = stats.ttest_rel(ours, theirs).confidence_interval()
        assert (line["level"], line["against"], line["seeds"]) == ("recipe", "reference", 3)
        text = f"{mean(ours) - mean(theirs):+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
        assert line["effect"] == text.replace("-", "−")
    said = report(study)
    assert said.index("## Does it hold?") < said.index("## Arms at each length")
    assert "| 8 × | experiment | recipe | reference |" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_over_experiments_makes_such_a_report(text: str, tmp_path: Path) -> None:
    small = ("model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.n_vocab=300", "hardware=cpu")
    short = ("data.context_length=64", "batch_tokens=512", "hardware.micro_batch_size=8", "reading.multiples=[]")
    arms = ("seed=0", "experiment=recipe/reference_2048,recipe/without_muon", "optimizer.learning_rate=1e-3,1e-2")
    steps = ("total_steps=4", "schedule.warmup_steps=1", "curriculum.first_length=null", "curriculum.steps=null")
    words = ["-m", *arms, *small, *short, *steps, "optimizer.beta1=0.9", "data.validation_tokens=1024"]
    folder = tmp_path / "study"
    done = run_script("train.py", [*words, f"data.files={text}", "validate_every=2", f"output={folder}"], timeout=800)
    assert done.returncode == 0, done.stderr
    assert len(frames.runs(folder)) == 4
    assert (folder / "experiment-recipe-without_muon_learning_rate-0.001").is_dir()
    said = report(folder)
    assert (
        "Varied: experiment (recipe-reference_2048, recipe-without_muon); optimizer.learning_rate (0.001, 0.01)" in said
    )
    # With the same steps and no short windows, the two are one recipe: no arm gains on the other.
    assert "| experiment | recipe-without_muon | recipe-reference_2048 | +0.000 |  | 1 | 1 |" in said
    assert "## Tokens and hours" not in said

"""The study of the recipe: what it would run, what it refuses, and at a small size all of it."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
from conftest import run_script
from scipy import stats

import recipe
import recipe_figures
from gptstar.config import TrainConfig, flatten
from gptstar.entry import compose
from gptstar.errors import ConfigError
from gptstar.training.status import Status
from recipe_study import SCALES, STAGES, TUNING_SEED, Cell, Study, Try


def parsed(cell: Cell) -> TrainConfig:
    return TrainConfig.parse(compose("train", [*cell.overrides, f"output={cell.path}"]))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    best = {None: Try(1024, 2e-3), 2048: Try(2048, 2.8e-3)}
    monkeypatch.setattr(Study, "best", lambda self, scale, batch_tokens=None: best[batch_tokens])
    return Study(tmp_path, ("data.files=x",), seeds=2)


def test_every_run_composes_and_has_a_folder_of_its_own(study: Study) -> None:
    cells = [cell for stage in STAGES for cells in study.stage(stage) for cell in cells]
    assert len({cell.path for cell in cells}) == len(cells)
    assert all(parsed(cell).seed == cell.seed for cell in cells if cell.seed != 3)
    assert TUNING_SEED not in {cell.seed for cell in cells if cell.path.parent.name != "tuning"}


def test_reference_and_recipes_take_turns(study: Study) -> None:
    (cells,) = study.stage("headline")
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    assert cells[:2] == list(study.arms("small")[2])
    others = [each for of in (study.others(), study.budgets()) for cells in of.values() for each in cells]
    assert {cell.path for cell in cells} == {c.path for pair in study.arms("small").values() for c in pair} | {
        cell.path for cell in others
    }


@pytest.mark.parametrize("scale", SCALES)
def test_reference_and_recipe_differ_in_how_they_learn_alone(scale: str, study: Study) -> None:
    one, two = (parsed(cell) for cell in study.arms(scale)[2])
    tokens = one.total_steps * one.batch_tokens
    assert 0.4 < two.total_steps * two.batch_tokens / tokens <= 0.5
    assert (one.model, one.data) == (two.model, two.data)
    assert (one.batch_tokens, one.optimizer.learning_rate) == (1024, 2e-3)
    assert tokens == (3_276_800 if scale == "longer" else 819_200)
    assert two.curriculum.steps == 0.75 * two.total_steps
    for arm in (one, two):
        assert arm.schedule.warmup_steps == pytest.approx(arm.total_steps / 10, abs=1)
        assert arm.hardware.micro_batch_size * arm.data.context_length == arm.batch_tokens


def test_a_try_of_the_reference_changes_its_steps_and_rate_alone(study: Study) -> None:
    base = flatten(parsed(study.arms("small")[2][0]).settings())
    for each, cell in study.tuning("small").items():
        tried = parsed(cell)
        assert (tried.batch_tokens, tried.optimizer.learning_rate) == (each.batch_tokens, each.rate)
        assert tried.total_steps * tried.batch_tokens == 819_200
        changed = {key for key, value in flatten(tried.settings()).items() if value != base[key]}
        assert changed <= {*STEP, "optimizer.learning_rate", "seed", "reading.multiples"}


def test_another_budget_is_everyones(study: Study) -> None:
    study = replace(study, tokens=81_920)
    one, two = (parsed(cell) for cell in study.arms("small")[2])
    assert one.total_steps * one.batch_tokens == 81_920
    assert two.total_steps * two.batch_tokens == 40_960
    assert two.curriculum.steps == 0.75 * two.total_steps
    for share, cells in study.budgets().items():
        shorter = parsed(cells[0])
        assert shorter.total_steps == round(share * 40)
        assert shorter.curriculum.steps == pytest.approx(0.75 * shorter.total_steps, abs=0.5)


STEP = {"batch_tokens", "hardware.micro_batch_size", "total_steps", "schedule.warmup_steps", "schedule.decay_until"}
CHANGED = {
    "Muon, with AdamW as the reference has it": {
        *("optimizer.algorithm", "optimizer.learning_rate", "optimizer.beta1", "optimizer.beta2"),
        "optimizer.gradient_clipping",
    },
    "published proportions": {"optimizer.adjust_lr"},
    "heads apart, in four iterations": {"optimizer.heads_apart", "optimizer.iterations"},
    "memory": {"optimizer.momentum", "optimizer.beta1", "optimizer.beta2"},
    "no clipping": {"optimizer.gradient_clipping"},
    "short windows first": {"curriculum.first_length", "curriculum.steps"},
}
OF_MUON = {"optimizer.newton_schulz"}
"""What only Muon has a word for, and, on machines without bfloat16 instructions, another than the default."""


def test_each_ingredient_is_left_out_by_itself(study: Study) -> None:
    whole = flatten(parsed(study.arms("small")[2][1]).settings())
    for name, cells in study.ingredients().items():
        without = flatten(parsed(cells[0]).settings())
        changed = {key for key in whole if without[key] != whole[key]}
        assert changed - (OF_MUON if "optimizer.algorithm" in changed else set()) == CHANGED[name]


def test_without_muon_there_is_the_references_adamw(study: Study) -> None:
    without = parsed(study.ingredients()["Muon, with AdamW as the reference has it"][0])
    reference = parsed(study.others()["the reference at 2,048 tokens a step"][0])
    for key in ("algorithm", "learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "gradient_clipping"):
        assert getattr(without.optimizer, key) == getattr(reference.optimizer, key)
    assert without.optimizer.learning_rate == 2.8e-3


def test_the_reference_is_the_best_of_all_that_were_tried(tmp_path: Path) -> None:
    study = Study(tmp_path, ("data.files=x",), seeds=1)
    *most, last = study.tuning("small").items()
    for each, cell in most:
        near = abs(math.log2(each.rate / 2e-3)) + abs(math.log2(each.batch_tokens / 512))
        write_run(cell, steps=10, loss=5 + near, tokens_per_second=100)
    with pytest.raises(ConfigError, match="not tuned"):
        study.best("small")
    write_run(last[1], steps=10, loss=6.5, tokens_per_second=100)
    assert study.best("small") == Try(512, 2e-3)
    assert study.best("small", 1024) == Try(1024, 2e-3)
    assert study.best("small", 2048) == last[0]
    assert "rate-0.002" in str(study.arms("small")[2][0].path)  # so that another best is another folder
    recipe_figures.show(study)
    said = (tmp_path / "recipe.md").read_text()
    assert "| two layers of 256 | 1,024 | | 6.515 | 6.000 | 6.485 |" in said.replace("|  |", "| |")
    assert "the best rate is at the end" in said
    assert "the best tokens a step are at the end" in said


def test_what_can_not_be_shown_is_said(
    tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", "x", "--show", "--output", str(tmp_path)])
    assert "the reference is not tuned" in refusal(recipe.main)
    monkeypatch.setattr(sys, "argv", ["recipe.py", "x", "--only", "tuning,headlines"])
    assert "there is no headlines; the stages are tuning, headline" in refusal(recipe.main)


def test_what_a_run_refuses_ends_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["missing/*.txt", "--only", "tuning", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
    with pytest.raises(SystemExit) as stopped:
        recipe.main()
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert "missing/*.txt" in said
    assert "gptstar.errors" not in said
    assert len(list(tmp_path.rglob("*.txt"))) == 2  # two at a time, and no other has begun


def test_what_the_study_decides_is_not_given(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", "x", "optimizer.learning_rate=1"])
    assert "the study itself decides on optimizer.learning_rate" in refusal(recipe.main)


def write_run(cell: Cell, *, steps: int, loss: float, tokens_per_second: float) -> None:
    """A finished run, as its folder tells it."""
    cell.path.mkdir(parents=True)
    tree = {"total_steps": steps, "batch_tokens": 100, "seed": cell.seed, "model": {"d_model": 256}}
    (cell.path / "config.yaml").write_text(json.dumps(tree))
    (cell.path / "versions.json").write_text("{}")
    head = "step,tokens,tokens_per_second,validation/loss"
    rows = [f"{steps},{steps * 100},{tokens_per_second},", f"{steps},,,{loss}"]
    (cell.path / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    Status("finished").write(cell.path)


REFERENCES, RECIPES, WORSE = (5.0, 5.2, 5.1), (4.9, 5.05, 5.05), (5.1, 5.2, 5.3)


@pytest.fixture
def made_up(study: Study, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Three seeds: the recipe takes 0.4 of the tokens and half the time, and a run of 0.2 is 0.3 nats worse."""
    study = replace(study, seeds=3)
    for each, cell in study.tuning("small").items():
        write_run(cell, steps=10, loss=5 + abs(each.rate - 2e-3), tokens_per_second=100)
    for seed, (one, two) in study.arms("small").items():
        write_run(one, steps=10, loss=REFERENCES[seed - 2], tokens_per_second=100)
        write_run(two, steps=4, loss=RECIPES[seed - 2], tokens_per_second=80)
    monkeypatch.setattr(Study, "budgets", lambda self: {0.2: [self._cell("x", seed=seed) for seed in self.counted]})
    for cell in study.budgets()[0.2]:
        write_run(cell, steps=2, loss=RECIPES[cell.seed - 2] + 0.3, tokens_per_second=80)
    for cell in study.ingredients()["memory"]:
        write_run(cell, steps=4, loss=WORSE[cell.seed - 2], tokens_per_second=80)
    return study


def test_tables_say_what_the_runs_do(made_up: Study, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in made_up.others()["the reference with betas of 0.8 and 0.98"][:2]:
        write_run(cell, steps=10, loss=4.7, tokens_per_second=100)
    recipe_figures.show(made_up)
    said = (made_up.output / "recipe.md").read_text()
    assert f"| recipe | 400 | {mean(RECIPES):.3f} ± {stdev(RECIPES):.3f} |" in said
    assert "| the reference with betas of 0.8 and 0.98 | 1,000 | 4.700 ± 0.000 |" in said
    assert f"| recipe against it, 2 seeds | × 0.40 | {mean(RECIPES[:2]) - 4.7:+.3f} (" in said
    theirs = stats.ttest_rel(RECIPES, REFERENCES).confidence_interval()
    assert f"| × 0.40 | -0.100 ({theirs.low:+.3f} to {theirs.high:+.3f}) | × 0.50 (0.50 to 0.50) |" in said
    assert f"| the reference | 1,000 | {mean(REFERENCES):.3f} ± {stdev(REFERENCES):.3f} |" in said
    without = stats.ttest_rel(WORSE, RECIPES)
    assert f"| memory | +0.200 ({without.confidence_interval().low:+.3f} to" in said
    assert f"| {without.pvalue:.2g} | 3 |" in said
    # Of the 0.3 nats between 0.2 and 0.4 of the tokens, the seeds' references lie 0.1, 0.15 and 0.05 above the last.
    logs = [math.log(0.4) - math.log(2) * above / 0.3 for above in (0.1, 0.15, 0.05)]
    interval = stats.ttest_1samp(logs, 0).confidence_interval()
    bounds = [math.exp(each) for each in (mean(logs), interval.low, interval.high)]
    assert "budgets: tokens × {:.2f} ({:.2f} to {:.2f}), 3 seeds; time".format(*bounds) in said
    # At 80 tokens a second instead of 100, each token takes 1.25 of the reference's time.
    assert "time × {:.2f} ({:.2f} to {:.2f}), 3 seeds.".format(*(1.25 * each for each in bounds)) in said
    assert (made_up.output / "recipe.png").exists()


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_what_is_not_whole_is_named(lines: int, made_up: Study) -> None:
    one = made_up.arms("small")[2][0].path
    kept = (one / "metrics.csv").read_text().splitlines()[:lines]
    (one / "metrics.csv").write_text("".join(f"{line}\n" for line in kept))
    with pytest.raises(ConfigError, match=f"{one}.*remove|{one}.*move it away"):
        recipe_figures.show(made_up)


def test_another_scale_is_shown_by_itself(tmp_path: Path) -> None:
    study = Study(tmp_path, ("data.files=x",), seeds=2)
    for each, cell in study.tuning("longer").items():
        write_run(cell, steps=10, loss=5 - each.rate, tokens_per_second=100)
    for one, two in study.arms("longer").values():
        write_run(one, steps=10, loss=5.0, tokens_per_second=100)
        write_run(two, steps=5, loss=4.9, tokens_per_second=100)
    recipe_figures.show(study)
    said = (tmp_path / "recipe.md").read_text()
    assert "**Elsewhere, two layers of 256, four times the tokens**" in said
    assert "| recipe against it, 2 seeds | × 0.50 | -0.100 (-0.100 to -0.100) | × 0.50 (0.50 to 0.50) |" in said
    assert "The recipe against" not in said


def test_a_folder_is_of_one_study(made_up: Study) -> None:
    recipe.check_folder(made_up)
    recipe.claim_folder(made_up)
    recipe.check_folder(replace(made_up, seeds=9))
    for other in (replace(made_up, tokens=16384), replace(made_up, given=("data.files=y",))):
        with pytest.raises(ConfigError, match="holds another study"):
            recipe.check_folder(other)


def test_a_bound_is_no_measurement(made_up: Study, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = recipe_figures.finished_pairs(made_up.arms("small"))
    few = {1000: {seed: two for seed, (_, two) in pairs.items()}}  # all of them are better than their references
    said = recipe_figures.reached(pairs, few, lambda run: run.tokens)
    assert said == "0 seeds between budgets, 3 before the least, 0 not at the most"
    turned = {seed: (two, one) for seed, (one, two) in pairs.items()}
    few = {1000: {seed: two for seed, (_, two) in turned.items()}}
    said = recipe_figures.reached(turned, few, lambda run: run.tokens)
    assert said == "0 seeds between budgets, 0 before the least, 3 not at the most"


READ = {1.0: (5.0, 5.3, 5.1), 8.0: (5.1, 5.5, 5.2)}, {1.0: (4.9, 5.1, 5.2), 8.0: (4.8, 5.2, 5.1)}
"""Losses of references and recipes by the multiple of their training context."""


def write_reading(cell: Cell, losses: Mapping[float, float]) -> None:
    """A study of length, in the folder of the run that ended with it."""
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
    checkpoint = {"path": str(cell.path / "last.ckpt"), "sha256": cell.path.name}
    curve = {"checkpoint": checkpoint, "trained_at": 64, "rotary_scaling": "none", "lengths": lengths}
    tree = {
        "kind": "length",
        "protocol": {"protocol": "fixed_targets"},
        "text": {"fingerprint": "x"},
        "curves": [curve],
    }
    (cell.path / "reading").mkdir()
    (cell.path / "reading" / "results.json").write_text(json.dumps(tree))


def test_losses_beyond_the_training_context_are_compared_by_seed(
    made_up: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, cells in made_up.arms("small").items():
        for cell, read in zip(cells, READ, strict=True):
            write_reading(cell, {multiple: losses[seed - 2] for multiple, losses in read.items()})
    recipe_figures.show(made_up)
    said = (made_up.output / "recipe.md").read_text()
    (near, far), (ours_near, ours_far) = ((each[1.0], each[8.0]) for each in READ)

    def paired(one: tuple[float, ...], two: tuple[float, ...], digits: int) -> str:
        interval = stats.ttest_rel(one, two).confidence_interval()
        return f"{mean(one) - mean(two):+.{digits}f} ({interval.low:+.{digits}f} to {interval.high:+.{digits}f})"

    expected = [
        f"{mean(far):.3f} ± {stdev(far):.3f}",
        paired(ours_far, far, 3),
        paired(far, near, 4),
        paired(ours_far, ours_near, 4),
    ]
    assert f"| 8 × | {' | '.join(expected)} |" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_from_text_to_tables(text: str, tmp_path: Path) -> None:
    small = ("model.n_layers=1", "model.d_ff=16", "model.n_vocab=300", "hardware=cpu")
    less = ("data.validation_tokens=1024", "reading.multiples=[]")
    stages = ",".join(stage for stage in STAGES if stage != "longer")  # the same code as `smaller`
    words = [text, *small, *less, "--seeds", "1", "--tokens", "16384", "--only", stages, "--output", str(tmp_path)]
    done = run_script("benchmarks/recipe.py", words, timeout=900)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "recipe.md").read_text()
    for title in ("Tuning", "The recipe against", "other budgets", "ingredient", "Elsewhere, two layers of 128"):
        assert title in said
    assert (tmp_path / "recipe.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime for path in tmp_path.rglob("metrics.csv")}
    again = run_script("benchmarks/recipe.py", words, timeout=900)  # all finished: nothing runs
    assert again.returncode == 0
    assert before == {path: path.stat().st_mtime for path in tmp_path.rglob("metrics.csv")}

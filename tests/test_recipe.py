"""The study of the recipe: what it would run, what it refuses, and at a small size all of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_script

import recipe
from gptstar.composing import compose
from gptstar.config import TrainConfig, flatten


def parsed(cell: recipe.Cell) -> TrainConfig:
    return TrainConfig.parse(compose("train", [*cell.overrides, f"output={cell.path}"]))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recipe.Study:
    monkeypatch.setattr(recipe.Study, "best_rate", lambda self, size: 2e-3)
    return recipe.Study(tmp_path, ("data.files=x",), seeds=2)


def test_every_run_composes_and_has_a_folder_of_its_own(study: recipe.Study) -> None:
    cells = [cell for stage in recipe.STAGES for cell in study.stage(stage)]
    assert len({cell.path for cell in cells}) == len(cells)
    assert all(parsed(cell).seed == cell.seed for cell in cells if cell.seed != 1)
    assert recipe.TUNING_SEED not in {cell.seed for cell in cells if cell.path.parent.name != "tuning"}


def test_reference_and_recipe_take_turns_and_differ_in_how_they_learn_alone(study: recipe.Study) -> None:
    reference, recipes = zip(*(study.arms("small")[seed] for seed in range(2)), strict=True)
    assert study.stage("headline") == [cell for pair in zip(reference, recipes, strict=True) for cell in pair]
    one, two = parsed(reference[0]), parsed(recipes[0])
    assert two.total_steps <= one.total_steps / 2
    assert (one.model, one.data, one.batch_tokens) == (two.model, two.data, two.batch_tokens)
    assert one.optimizer.learning_rate == 2e-3


def test_each_ingredient_is_left_out_by_itself(study: recipe.Study) -> None:
    whole = flatten(parsed(study.arms("small")[0][1]).settings())
    for name, cells in study.ingredients().items():
        without = flatten(parsed(cells[0]).settings())
        changed = {key.partition(".")[0] for key in whole if without[key] != whole[key]}
        assert len(changed) == 1, (name, changed)  # it may be several keys of one group


def test_what_can_not_be_shown_is_said(
    tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe.py", "x", "--show", "--output", str(tmp_path)])
    assert "the reference is not tuned" in refusal(recipe.main)
    monkeypatch.setattr(sys, "argv", ["recipe.py", "x", "--only", "tuning,headlines"])
    assert "there is no headlines; the stages are tuning, headline" in refusal(recipe.main)


def test_what_a_run_refuses_ends_the_study(tmp_path: Path) -> None:
    words = ["missing/*.txt", "--only", "tuning", "--output", str(tmp_path / "study")]
    done = run_script("benchmarks/recipe.py", words)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "missing/*.txt" in done.stderr


@pytest.mark.slow
def test_all_of_it_from_text_to_tables(text: str, tmp_path: Path) -> None:
    small = ("model.d_model=32", "model.n_heads=2", "model.n_vocab=300", "data.context_length=64", "hardware=cpu")
    less = ("batch_tokens=256", "data.block_tokens=64", "data.validation_tokens=1024", "reading.max_tokens=256")
    words = [text, *small, *less, "reading.targets=16", "--seeds", "2", "--output", str(tmp_path)]
    done = run_script("benchmarks/recipe.py", words)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "recipe.md").read_text()
    for title in ("Tuning", "The recipe against", "other budgets", "ingredient", "Another size", "Beyond"):
        assert title in said
    assert (tmp_path / "recipe.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime for path in tmp_path.rglob("metrics.csv")}
    again = run_script("benchmarks/recipe.py", words)  # all finished: nothing runs
    assert again.returncode == 0
    assert before == {path: path.stat().st_mtime for path in tmp_path.rglob("metrics.csv")}

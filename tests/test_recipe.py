"""The experiments behind `fast_small`: each is the recipe or its reference, but for what its name says."""

from functools import cache

import pytest

from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.training.recipe import Recipe
from gptstar.training.settings import settings_of
from support import ROOT

ARMS = sorted(path.stem for path in (ROOT / "conf/experiment/recipe").glob("*.yaml"))
REFERENCE_TOKENS = 819_200
STEP = {"batch_tokens", "hardware.micro_batch_size", "total_steps", "schedule.warmup_steps", "schedule.decay_until"}


@cache
def composed(experiment: str) -> TrainConfig:
    return TrainConfig.parse(compose("train", [f"experiment={experiment}", "data.files=x", "output=y"]))


def changed(experiment: str, against: str) -> set[str]:
    """Keys that shape a run in which two experiments differ."""
    one, two = (settings_of(parsed(each).resolved("bf16"), composed(each).hardware) for each in (experiment, against))
    return {key for key in one if one[key] != two.get(key)}


def parsed(experiment: str) -> Recipe:
    return composed(experiment).recipe


@pytest.mark.parametrize("experiment", ["fast_small", "fast_small_reference", *(f"recipe/{arm}" for arm in ARMS)])
def test_every_arm_warms_up_for_a_tenth_and_reads_a_step_in_one_pass(experiment: str) -> None:
    config = parsed(experiment)
    assert config.schedule.warmup_steps * 10 == config.total_steps
    assert composed(experiment).hardware.micro_batch_size * config.data.context_length == config.batch_tokens
    if config.curriculum.first_length is not None:
        assert config.curriculum.steps == 0.75 * config.total_steps


@pytest.mark.parametrize(
    ("experiment", "share"),
    [
        ("fast_small_reference", 1),
        ("fast_small", 0.5),
        *((f"recipe/reference_{which}", 1) for which in ("512", "2048", "betas")),
        ("recipe/budget_35", 0.35),
        ("recipe/budget_60", 0.6),
        ("recipe/long_reference", 4),
        ("recipe/long", 2),
        *((f"recipe/{arm}", 0.5) for arm in ARMS if arm.startswith("without_")),
    ],
)
def test_arms_have_their_share_of_the_references_tokens(experiment: str, share: float) -> None:
    config = parsed(experiment)
    assert config.total_steps * config.batch_tokens == share * REFERENCE_TOKENS


@pytest.mark.parametrize(
    ("experiment", "against", "keys"),
    [
        ("recipe/reference_512", "fast_small_reference", {*STEP, "optimizer.learning_rate"}),
        ("recipe/reference_2048", "fast_small_reference", {*STEP, "optimizer.learning_rate"}),
        ("recipe/reference_betas", "fast_small_reference", {"optimizer.beta1", "optimizer.beta2"}),
        ("recipe/without_proportions", "fast_small", {"optimizer.adjust_lr"}),
        ("recipe/without_heads_apart", "fast_small", {"optimizer.heads_apart", "optimizer.iterations"}),
        ("recipe/without_memory", "fast_small", {"optimizer.momentum", "optimizer.beta1", "optimizer.beta2"}),
        ("recipe/without_clipping", "fast_small", {"optimizer.gradient_clipping"}),
        ("recipe/without_windows", "fast_small", {"curriculum.first_length", "curriculum.steps"}),
        ("recipe/budget_35", "fast_small", STEP | {"curriculum.steps"}),
        ("recipe/budget_60", "fast_small", STEP | {"curriculum.steps"}),
        ("recipe/long_reference", "fast_small_reference", STEP),
        ("recipe/long", "fast_small", STEP | {"curriculum.steps"}),
    ],
)
def test_an_arm_differs_in_what_its_name_says_alone(experiment: str, against: str, keys: set[str]) -> None:
    found = changed(experiment, against)
    assert found <= keys
    assert found >= keys - STEP
    assert found


def test_without_muon_there_is_the_references_adamw() -> None:
    without, reference, recipe = (
        parsed(each) for each in ("recipe/without_muon", "recipe/reference_2048", "fast_small")
    )
    assert without.optimizer == reference.optimizer
    assert without.optimizer.learning_rate == 2.8e-3
    for key in ("batch_tokens", "total_steps", "schedule", "curriculum", "model", "data"):
        assert getattr(without, key) == getattr(recipe, key)


@pytest.mark.parametrize(
    ("experiment", "rate"),
    [("gpt127", 6e-4), ("gpt303", 3e-4), ("fast_gpt127", 1.8e-3), ("fast_gpt303", 9e-4), ("gpt_1b3", 2e-4)],
)
def test_the_peak_rates_are_the_authors_and_three_times_as_much_with_muon(experiment: str, rate: float) -> None:
    """GPT-303* learned at 3e-4, by the author's training log ("the only deviation")."""
    assert parsed(experiment).optimizer.learning_rate == rate

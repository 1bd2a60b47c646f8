"""Every kind of positions in a run: windows that grow, attention within documents, and a bitwise resume."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.model.positions import Fire
from support.runs import assert_goes_on_bitwise

GROWS = ("curriculum.first_length=8", "curriculum.steps=8", "data.attention=within")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fox", "fire", "t5", "kerple", "log_alibi"])
def test_a_bias_goes_on_bitwise(kind: str, overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    assert_goes_on_bitwise(overrides, tmp_path, f"model.positions={kind}", *GROWS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sinusoidal", "p_rope"])
def test_what_is_no_bias_goes_on_bitwise(kind: str, overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    assert_goes_on_bitwise(overrides, tmp_path, f"model.positions={kind}", *GROWS)


@pytest.mark.parametrize(
    ("given", "threshold"), [("fire", 64), ("{kind: fire}", 64), ("{kind: fire, threshold: 33}", 33)]
)
def test_fire_starts_at_the_training_context(given: str, threshold: int) -> None:
    words = [f"model.positions={given}", "data.context_length=64"]
    parsed = TrainConfig.parse(compose("train", words))
    assert parsed.recipe.model.positions == Fire(threshold)
    assert parsed.recipe.model.as_dict()["positions"] == {"kind": "fire", "threshold": threshold}

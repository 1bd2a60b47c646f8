"""Windows of attention, sinks and SSMax in a run: configured, counted, and gone on with bitwise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.model import GPTConfig
from gptstar.model.softmax_scale import SSMax
from support.runs import assert_goes_on_bitwise, run_script_here

GROWS = ("curriculum.first_length=8", "curriculum.steps=8", "data.attention=within")
MODIFIERS = ("model.attention_window=6", "model.attention_sinks=2", "model.softmax_scale=ssmax")


@pytest.mark.parametrize("kind", ["alibi", pytest.param("fox", marks=pytest.mark.slow)])
def test_a_run_goes_on_bitwise(kind: str, overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    ended = assert_goes_on_bitwise(overrides, tmp_path, f"model.positions={kind}", *MODIFIERS, *GROWS)
    assert (ended.model.attention_window, ended.model.attention_sinks) == (6, 2)
    assert ended.model.softmax_scale == SSMax(32)
    of_s = ended.weights["blocks.0.attention.softmax_scale.s"]
    assert not torch.equal(of_s, SSMax(32).initial(of_s.shape)), "s is learned"


@pytest.mark.parametrize(
    ("given", "length"), [("ssmax", 64), ("{kind: ssmax}", 64), ("{kind: ssmax, context_length: 33}", 33)]
)
def test_ssmax_starts_at_the_training_context(given: str, length: int) -> None:
    words = [f"model.softmax_scale={given}", "data.context_length=64", "model.positions=fire"]
    parsed = TrainConfig.parse(compose("train", words)).recipe.model
    assert parsed.softmax_scale == SSMax(length)
    assert parsed.as_dict()["softmax_scale"] == {"kind": "ssmax", "context_length": length}
    assert parsed.as_dict()["positions"] == {"kind": "fire", "threshold": 64}
    assert GPTConfig.parse(parsed.as_dict()).softmax_scale == SSMax(length)


def test_a_configuration_from_before_them_has_none() -> None:
    tree = TrainConfig.parse(compose("train", [])).recipe.model.as_dict()
    assert (tree["attention_window"], tree["attention_sinks"], tree["softmax_scale"]) == (None, 0, "none")
    before = {key: value for key, value in tree.items() if key not in MODIFIED}
    assert GPTConfig.parse(before) == GPTConfig.parse(tree)


MODIFIED = ("attention_window", "attention_sinks", "softmax_scale")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.attention_window=0"], "model.attention_window=0 is below 1"),
        (["model.attention_sinks=4"], "model.attention_sinks=4 has no effect without a window"),
        (["model.softmax_scale=ssmx"], "model.softmax_scale=ssmx is not known: did you mean ssmax?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words: list[str], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal(run_script_here, "train.py", *words)

"""Runs from before keys had roles and choices had classes keep their meaning."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from gptstar.checkpoint.read import read
from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.training.settings import differing, is_finished, settings_of
from support.runs import recorded, run_here

OLD = Path(__file__).parents[1] / "fixtures/before_roles"
WORDS = (
    *("model.n_layers=1", "model.d_model=8", "model.n_heads=1", "model.n_vocab=260", "data=local"),
    *("data.files=text/part.jsonl", "data.shards=shards", "data.context_length=32", "data.block_tokens=64"),
    *("batch_tokens=256", "total_steps=4", "schedule.warmup_steps=1", "validate_every=2", "checkpoint_every=4"),
    *("log_every=1", "report=false", "data.validation_tokens=256", "data.validation_fraction=0.2", "checkpoint_keep=1"),
)
"""The command line that made them."""

NOW = (*WORDS, "experiment=quickstart")
"""The same for today's command line, which has the quickstart's settings beside other text if they are asked for."""

RUNS = ("adamw", "muon")

LATER = {"attention_window": None, "attention_sinks": 0, "softmax_scale": "none"}
"""What they mean by keys that came after them."""


def digest(tensor: Any) -> str:
    return hashlib.sha256(torch.as_tensor(tensor).contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.mark.core
@pytest.mark.parametrize("optimizer", RUNS)
def test_tensors_and_settings_are_read_as_they_were_written(optimizer: str) -> None:
    folder = OLD / f"optimizer-{optimizer}"
    expected = json.loads((folder / "expected.json").read_text())
    checkpoint = read(folder / "last.ckpt")
    assert checkpoint.training is not None
    assert checkpoint.model.as_dict() == expected["model"] | LATER
    assert checkpoint.training.settings == expected["settings"]
    assert {name: digest(weight) for name, weight in checkpoint.weights.items()} == expected["weights"]
    states = checkpoint.training.optimizer
    found = {name: {key: digest(value) for key, value in state.items()} for name, state in states.items()}
    assert found == expected["optimizer"]
    checkpoint.build()


@pytest.mark.core
@pytest.mark.parametrize("optimizer", RUNS)
def test_the_same_command_may_continue_them_and_another_may_not(optimizer: str) -> None:
    checkpoint = read(OLD / f"optimizer-{optimizer}" / "last.ckpt")
    assert checkpoint.training is not None

    def keys(*words: str) -> set[str]:
        config = TrainConfig.parse(compose("train", [*NOW, f"optimizer={optimizer}", *words]))
        ours = settings_of(config.recipe.resolved("float32"), config.hardware)
        precision = {"hardware.precision": "float32"}
        return {key for key, _, _ in differing(checkpoint.training.settings, ours | precision)}

    assert keys() == set()
    assert keys("optimizer.beta2=0.9") == {"optimizer.beta2"}
    assert keys("schedule=linear", "schedule.final_fraction=0.05") == {"schedule.shape"}
    assert keys("data.attention=within", "log_every=3", "total_steps=4") == {"data.attention"}


@pytest.mark.slow
def test_a_run_with_the_quickstarts_settings_beside_other_text_says_how_to_go_on(
    overrides: Callable[..., list[str]], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """Before `experiment=none`, a command without an experiment had these settings; now it is refused, with a fix."""
    words = overrides("total_steps=6", "schedule.decay_until=12", "schedule.final_fraction=0.1")
    run_here([*words, "experiment=quickstart"])
    again = [word for word in words if word != "total_steps=6"] + ["total_steps=12"]
    line = refusal(run_here, again)
    assert "with other settings: optimizer.learning_rate (checkpoint: 0.004, now: 0.0006): give the same" in line
    assert "experiment=quickstart has the settings that this run began with" in line
    run_here([*again, "experiment=quickstart"])
    assert max(recorded(tmp_path / "run")) == 12


@pytest.mark.slow
@pytest.mark.core
@pytest.mark.parametrize("optimizer", RUNS)
def test_they_are_finished_under_the_same_command_alone(optimizer: str) -> None:
    folder = OLD / f"optimizer-{optimizer}"

    def finished(*words: str) -> bool:
        composed = compose("train", [*NOW, f"optimizer={optimizer}", f"output={folder}", *words])
        return is_finished(folder, OmegaConf.to_yaml(composed, resolve=True))

    assert finished()
    assert finished("log_every=7", "tracker=tensorboard", "data.loader_workers=1", "hardware.micro_batch_size=2")
    for other in ("seed=1", "total_steps=8", "optimizer.beta1=0.8", "report=true", "hardware.precision=bf16"):
        assert not finished(other)

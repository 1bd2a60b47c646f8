"""Sequence-length warm-up: the same tokens in the same order, in shorter windows first."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptstar.checkpoint.read import read
from gptstar.errors import ConfigError
from gptstar.training.curriculum import Curriculum, folded
from support.runs import recorded, run_here

Overrides = Callable[..., list[str]]


def test_stages_are_even_and_end_at_the_context() -> None:
    curriculum = Curriculum(first_length=128).resolved(1024, 60)
    assert curriculum.steps == 30
    lengths = [curriculum.length(step, 1024) for step in range(60)]
    assert lengths == [128] * 10 + [256] * 10 + [512] * 10 + [1024] * 30
    assert Curriculum().resolved(1024, 60).length(0, 1024) == 1024


@pytest.mark.parametrize("first", [96, 512, 1024, 384])
def test_a_first_length_doubles_to_the_context(first: int) -> None:
    with pytest.raises(ConfigError, match=f"first_length={first} does not double to data.context_length=512"):
        Curriculum(first_length=first).resolved(512, 60)


def test_folding_keeps_every_target_with_what_is_right_before_it() -> None:
    windows = torch.arange(3 * 17).view(3, 17)
    short = folded(windows, 4)
    assert short.shape == (12, 5)
    assert torch.equal(short[:, 1:].reshape(3, 16), windows[:, 1:])
    assert torch.equal(short[:, :-1].reshape(3, 16), windows[:, :-1])
    assert torch.equal(folded(windows, 16), windows)


@pytest.mark.slow
def test_a_short_stage_is_a_run_at_that_length(overrides: Overrides, tmp_path: Path) -> None:
    """The reference is the data layer, which cuts short windows itself if the context is short throughout."""
    long = next(int(word.partition("=")[2]) for word in overrides() if word.startswith("data.context_length="))
    short = ("total_steps=12", f"data.context_length={long // 2}", "hardware.micro_batch_size=4")
    run_here(overrides(*short, output="short"))
    grows = (f"curriculum.first_length={long // 2}", "hardware.micro_batch_size=2")
    run_here(overrides(*grows, "total_steps=12", "curriculum.steps=8", output="grows"))
    theirs, ours = recorded(tmp_path / "short"), recorded(tmp_path / "grows")
    assert [ours[step] for step in range(1, 9)] == pytest.approx([theirs[step] for step in range(1, 9)], rel=1e-6)
    assert ours[9] != pytest.approx(theirs[9], rel=1e-6)
    assert list(recorded(tmp_path / "grows", "context_length").values()) == [long // 2] * 8 + [long] * 4


def test_a_run_goes_on_across_a_stage(overrides: Overrides, tmp_path: Path) -> None:
    more = ("curriculum.first_length=8", "curriculum.steps=12", "schedule.decay_until=16", "total_steps=16")
    run_here(overrides(*more, output="whole"))
    run_here(overrides(*more[:-1], "total_steps=7"))
    run_here(overrides(*more))
    assert recorded(tmp_path / "whole") == recorded(tmp_path / "run")
    first, second = (read(tmp_path / name / "last.ckpt").weights for name in ("whole", "run"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_another_curriculum_is_refused(overrides: Overrides, refusal: Callable[..., str]) -> None:
    run_here(overrides("total_steps=6", "schedule.decay_until=16"))
    line = refusal(run_here, overrides("schedule.decay_until=16", "curriculum.first_length=8"))
    assert "curriculum.first_length (checkpoint: None, now: 8)" in line


def test_a_run_reaches_its_context(overrides: Overrides, refusal: Callable[..., str]) -> None:
    line = refusal(run_here, overrides("curriculum.first_length=8", "curriculum.steps=24"))
    assert "curriculum.steps=24 leaves none of 24 steps for the full data.context_length" in line

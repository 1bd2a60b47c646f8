"""Learning-rate schedules, and one long run that is branched to end at several lengths."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from gptstar.checkpoint.format import write
from gptstar.checkpoint.read import read
from gptstar.errors import ConfigError
from gptstar.training.schedules import SCHEDULES
from gptstar.training.schedules.constant import Constant
from gptstar.training.schedules.inverse_sqrt import InverseSqrt
from gptstar.training.schedules.wsd import WSD
from support.runs import recorded, run_here

Overrides = Callable[..., list[str]]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_cosine_and_linear_are_pytorchs(shape: Literal["cosine", "linear"]) -> None:
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    warm = LinearLR(optimizer, 1e-12, total_iters=5)
    down = CosineAnnealingLR(optimizer, 15, eta_min=0.1) if shape == "cosine" else LinearLR(optimizer, 1.0, 0.1, 15)
    theirs = SequentialLR(optimizer, [warm, down], milestones=[5])
    ours = SCHEDULES.parse({"shape": shape, "warmup_steps": 5}).resolved(20)
    for step in range(20):
        assert ours.fraction(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()
    assert ours.fraction(20) == ours.fraction(99) == pytest.approx(0.1)


def test_wsd_warms_up_stays_and_decays() -> None:
    schedule = WSD(warmup_steps=4, final_fraction=0.2, decay_steps=16).resolved(100)
    assert [schedule.fraction(step) for step in (0, 2, 4, 50, 84)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert schedule.fraction(88) == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(4 / 16)))
    assert schedule.fraction(100) == schedule.fraction(200) == pytest.approx(0.2)
    assert WSD(warmup_steps=4).resolved(100).decay_steps == 20


def test_the_others_need_no_end() -> None:
    inverse = InverseSqrt(warmup_steps=100)
    assert [inverse.fraction(step) for step in (50, 100, 400, 10_000)] == pytest.approx([0.5, 1.0, 0.5, 0.1])
    assert InverseSqrt(warmup_steps=0).fraction(0) == 1.0
    constant = Constant(warmup_steps=2)
    assert [constant.fraction(step) for step in (0, 1, 2, 10**6)] == [0.0, 0.5, 1.0, 1.0]
    assert constant.resolved(10) == constant


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"warmup_steps": 90, "shape": "wsd"}, "exceed the 100 steps until the decay ends"),
        ({"warmup_steps": 100}, "leaves no steps of total_steps=100 for the decay"),
        ({"warmup_steps": 1, "decay_steps": 5}, "decay_steps=5 is a key of schedule=wsd, not of schedule=cosine"),
        ({"warmup_steps": 1, "decay_steps": 0, "shape": "wsd"}, "decay_steps=0 is below 1"),
        (
            {"warmup_steps": 1, "decay_until": 5, "shape": "constant"},
            "is a key of schedule=cosine or linear or wsd, not",
        ),
    ],
)
def test_what_can_not_be_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SCHEDULES.parse({"shape": "cosine"} | given).resolved(100)


DECAY_TWICE = ("schedule=wsd", "schedule.warmup_steps=3", "schedule.decay_steps=6")


@pytest.mark.slow
def test_one_long_run_ends_at_many_lengths(
    overrides: Overrides, refusal: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*DECAY_TWICE, "checkpoint_every=7", "checkpoint_keep=9", "schedule.final_fraction=0.05")
    run_here(overrides(*more, "total_steps=24", output="long"))
    at_7 = tmp_path / "long/step-000007.ckpt"
    assert at_7.exists(), sorted((tmp_path / "long").iterdir())
    branch = overrides(*more, "total_steps=13", f"branch_from={at_7}", output="branch")
    run_here(branch)
    assert "at step 7 of 13" in capsys.readouterr().out
    run_here(overrides(*more, "total_steps=13", output="alone"))
    alone = recorded(tmp_path / "alone")
    assert recorded(tmp_path / "branch") == {step: loss for step, loss in alone.items() if step > 7}
    mine, theirs = (read(tmp_path / name / "last.ckpt").weights for name in ("branch", "alone"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    run_here(branch)
    assert "finished already" in capsys.readouterr().out

    last = tmp_path / "long/last.ckpt"
    late = overrides(*more, "total_steps=30", f"branch_from={last}", output="late")
    assert "can't be branched from at step 24: at step 19 its learning rate was 0.612" in refusal(run_here, late)
    warm = overrides(*more, "total_steps=13", f"branch_from={at_7}", "schedule.warmup_steps=2", output="warm")
    assert "at step 1 its learning rate was 0.333 of the peak, but this schedule has 0.5" in refusal(run_here, warm)
    other = overrides(*more, "total_steps=13", f"branch_from={at_7}", "optimizer.beta2=0.9", output="other")
    assert "with other settings: optimizer.beta2" in refusal(run_here, other)
    plain = overrides(*more, "total_steps=13", f"resume={at_7}", output="plain")
    assert "with branch_from for another schedule" in refusal(run_here, plain)


def test_what_can_not_be_branched_from_is_named(
    overrides: Overrides, refusal: Callable[..., str], tmp_path: Path
) -> None:
    run_here(overrides(*DECAY_TWICE, "total_steps=16", output="long"))
    whole = read(tmp_path / "long/last.ckpt")
    assert whole.training is not None
    write(tmp_path / "weights.ckpt", replace(whole, training=None))
    weights = overrides(*DECAY_TWICE, f"branch_from={tmp_path / 'weights.ckpt'}", output="a")
    assert "holds weights only" in refusal(run_here, weights)
    unknown = replace(whole.training, settings=whole.training.settings | {"schedule.later": 1})
    write(tmp_path / "unknown.ckpt", replace(whole, training=unknown))
    later = overrides(*DECAY_TWICE, f"branch_from={tmp_path / 'unknown.ckpt'}", output="b")
    assert "schedule.later is not a key of schedule=wsd: use the gptstar version that made it" in refusal(
        run_here, later
    )
    (tmp_path / "empty").mkdir()
    empty = overrides(*DECAY_TWICE, f"branch_from={tmp_path / 'empty'}", output="c")
    assert "empty holds neither best.ckpt nor last.ckpt" in refusal(run_here, empty)


@pytest.mark.slow
def test_a_branch_goes_on_when_what_it_came_from_is_gone(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides(*DECAY_TWICE, "total_steps=24", "checkpoint_every=7", "checkpoint_keep=9", output="long"))
    branch = (*DECAY_TWICE, "schedule.decay_until=20", f"branch_from={tmp_path / 'long/step-000007.ckpt'}")
    run_here(overrides(*branch, "total_steps=12"))
    shutil.rmtree(tmp_path / "long")
    run_here(overrides(*branch, "total_steps=20"))
    assert list(recorded(tmp_path / "run")) == list(range(8, 21))

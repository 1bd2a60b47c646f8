"""The user's own callbacks: runs that they ended stay ended, and their state resumes."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from gptstar.checkpoint.read import read
from gptstar.cli import main
from gptstar.training.status import Status
from support.runs import recorded, run_here

Overrides = Callable[..., list[str]]

NO_PROGRESS = ("optimizer.learning_rate=1e-12", "validate_every=3", "checkpoint_every=100")


def stopping(patience: int, *others: str) -> str:
    """Return an EarlyStopping that nothing satisfies: it stops at validation number `patience` + 1."""
    own = f'use: "lightning.pytorch.callbacks:EarlyStopping", monitor: validation/loss, patience: {patience}'
    return f"trainer.callbacks=[{', '.join(['{' + own + ', min_delta: 1.0}', *others])}]"


def other(name: str, **arguments: int) -> str:
    words = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f'{{use: "{__name__}:{name}"{words}}}'


class SetsUp(pl.Callback):
    """A callback that counts steps from a value set in `setup`, which needs the Trainer."""

    def __init__(self) -> None:
        self.count = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.count = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class CountsDown(pl.Callback):
    """A callback whose state is named by its argument."""

    def __init__(self, left: int) -> None:
        self.left = left

    def on_train_batch_end(self, *_: Any) -> None:
        self.left -= 1

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.left = state_dict["left"]


class Interrupts(pl.Callback):
    """A callback that sends SIGTERM once, in the validation of a step."""

    sent = False

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not Interrupts.sent:
            Interrupts.sent = True
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this module importable by a configuration."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(Interrupts, "sent", False)


def test_a_run_that_a_callback_ended_is_only_concluded_again(overrides: Overrides, tmp_path: Path, capsys) -> None:
    run_here(overrides(*NO_PROGRESS, stopping(2)))
    assert read(tmp_path / "run/last.ckpt").training.step == 9
    ended = Status.read(tmp_path / "run")
    assert ended.state == "finished"
    capsys.readouterr()

    run_here(overrides(*NO_PROGRESS, stopping(2), "report=true"))
    said = capsys.readouterr().out
    assert "ended at step 9 by EarlyStopping: " in said
    assert "to train further, change trainer.callbacks" in said
    assert (tmp_path / "run/report.json").exists()
    assert max(recorded(tmp_path / "run")) == 9
    assert Status.read(tmp_path / "run").reason == ended.reason


@pytest.mark.slow
def test_the_arguments_of_a_callback_win_over_its_state(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides(*NO_PROGRESS, stopping(2)))
    run_here(overrides(*NO_PROGRESS, stopping(4)))
    assert max(recorded(tmp_path / "run")) == 15
    assert read(tmp_path / "run/last.ckpt").training.ended["callbacks"][0]["patience"] == 4


def test_a_state_is_restored_after_setup(overrides: Overrides, tmp_path: Path) -> None:
    callbacks = f"trainer.callbacks=[{other('SetsUp')}]"
    run_here(overrides(callbacks, "total_steps=5", "schedule.decay_until=24"))
    run_here(overrides(callbacks, "total_steps=8", "schedule.decay_until=24"))
    assert read(tmp_path / "run/last.ckpt").training.callbacks == {"SetsUp": {"count": 8 * 2}}


@pytest.mark.slow
def test_a_state_of_an_argument_that_did_not_change_is_kept(overrides: Overrides, tmp_path: Path) -> None:
    for steps, left, expected in ((2, 50, 46), (4, 50, 42), (6, 9, 5)):
        callbacks = f"trainer.callbacks=[{other('CountsDown', left=left)}]"
        run_here(overrides(callbacks, f"total_steps={steps}", "schedule.decay_until=24"))
        assert read(tmp_path / "run/last.ckpt").training.callbacks == {"CountsDown": {"left": expected}}


def test_callbacks_see_a_validation_that_was_left_open(overrides: Overrides, tmp_path: Path, refusal) -> None:
    words = (*NO_PROGRESS, stopping(2, other("Interrupts", step=9)))
    assert "SIGTERM at step 9 of 24: saved" in refusal(run_here, overrides(*words))
    run_here(overrides(*words))
    assert max(recorded(tmp_path / "run")) == 9
    assert sorted(recorded(tmp_path / "run", "validation/loss")) == [3, 6, 9]
    assert Status.read(tmp_path / "run").reason.startswith("EarlyStopping: ")


def test_a_configuration_is_shown_only_if_its_callbacks_can_be_built(refusal) -> None:
    line = refusal(main, ["config", "trainer.callbacks=[{use: 'lightning.pytorch.callbacks:EarlyStoping'}]"])
    assert "trainer.callbacks: lightning.pytorch.callbacks:EarlyStoping can't be imported" in line

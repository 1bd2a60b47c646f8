"""AdamW with 8-bit moments: close to AdamW in a quarter of the memory, with bitwise exact resume."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptstar.model import GPT, GPTConfig
from gptstar.training.optimizers import OPTIMIZERS, adamw_8bit
from support.runs import assert_goes_on_bitwise, recorded, run_here

pytest.importorskip("bitsandbytes")

Overrides = Callable[..., list[str]]

SMALL = ("optimizer.learning_rate=0.01", "model.d_model=48")  # so that matrices are of more than 4,096 weights
IN_8_BITS = ("optimizer=adamw_8bit", *SMALL)


def test_a_step_is_adamws_but_for_rounding() -> None:
    moved = []
    for algorithm in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        model = GPT(GPTConfig(2, 64, 2, 97))
        before = model.blocks[0].mlp.up.weight.detach().clone()
        optimizer = OPTIMIZERS.parse({"algorithm": algorithm, "learning_rate": 0.01}).build(model)
        for _ in range(5):
            tokens = torch.randint(0, 97, (2, 33))
            optimizer.zero_grad()
            model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
            optimizer.step()
        moved.append(model.blocks[0].mlp.up.weight.detach() - before)
    error = (moved[1] - moved[0]).norm() / moved[0].norm()
    assert 0 < error < 0.1


@pytest.mark.slow
def test_losses_stay_near_adamws(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides(*SMALL, output="adamw"))
    run_here(overrides(*IN_8_BITS, output="adamw_8bit"))
    theirs, ours = recorded(tmp_path / "adamw"), recorded(tmp_path / "adamw_8bit")
    assert ours != theirs
    assert ours[24] < theirs[1] - 1
    assert ours[24] == pytest.approx(theirs[24], abs=0.05)


@pytest.mark.slow
def test_it_goes_on_bitwise(overrides: Overrides, tmp_path: Path) -> None:
    first = assert_goes_on_bitwise(overrides, tmp_path, *IN_8_BITS)
    kept = first.training.optimizer["blocks.0.mlp.up.weight"]
    assert {kept["state1"].dtype, kept["state2"].dtype} == {torch.uint8}


def test_parts_are_refused(overrides: Overrides, refusal: Callable[..., str]) -> None:
    line = refusal(run_here, overrides(*IN_8_BITS, "hardware.strategy=fsdp", "hardware.devices=2"))
    assert "optimizer=adamw_8bit can't update sharded parameters" in line


def test_the_library_that_is_missing_is_named(
    overrides: Overrides, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adamw_8bit, "find_spec", lambda name: None)
    assert "pip install 'gptstar[8bit]'" in refusal(run_here, overrides(*IN_8_BITS))

"""A new run that begins with the model, weights and tokenizer of a checkpoint."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptstar.checkpoint.format import write
from gptstar.checkpoint.read import read
from gptstar.files import file_sha256
from gptstar.training.status import read_config
from support.runs import damage, recorded, run_here
from support.text import sentences

Overrides = Callable[..., list[str]]


@pytest.fixture
def fine_tuning(tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides of a short run on other text, which say nothing about a model."""
    (tmp_path / "other").mkdir()
    lines = [json.dumps({"text": each}) for each in sentences(30, 80, seed=7)]
    (tmp_path / "other/part.jsonl").write_text("\n".join(lines) + "\n")
    words = (
        "data=local",
        f"data.files={tmp_path}/other/*.jsonl",
        "data.context_length=32",
        "data.block_tokens=64",
        "data.validation_tokens=512",
        "hardware=cpu",
        "hardware.precision=float32",
        "batch_tokens=256",
        "total_steps=4",
        "schedule.warmup_steps=1",
        "log_every=1",
        "checkpoint_every=2",
        "report=false",
    )

    def build(start: Path, *more: str) -> list[str]:
        return [*words, f"init_from={start}", f"output={tmp_path / 'tuned'}", *more]

    return build


def test_weights_and_tokenizer_come_from_the_checkpoint(
    fine_tuning, trained_once, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = trained_once()
    run_here(fine_tuning(start, "optimizer.learning_rate=1e-12"))
    assert "the weights of" in capsys.readouterr().out
    before, after = read(start / "best.ckpt"), read(tmp_path / "tuned/last.ckpt")
    assert after.tokenizer == before.tokenizer
    assert after.training.step == 4
    assert after.training.data["init_from"]["sha256"] == file_sha256(start / "best.ckpt")
    torch.testing.assert_close(after.weights, before.weights, rtol=0, atol=1e-6)
    assert read_config(tmp_path / "tuned")["model"]["d_model"] == 24


@pytest.mark.slow
def test_an_interrupted_run_goes_on_without_the_first_checkpoint(fine_tuning, trained_once, tmp_path: Path) -> None:
    start = tmp_path / "start.ckpt"
    start.write_bytes((trained_once() / "best.ckpt").read_bytes())
    run_here(fine_tuning(start, "schedule.decay_until=8", "total_steps=8", f"output={tmp_path / 'whole'}"))
    run_here(fine_tuning(start, "schedule.decay_until=8"))
    start.unlink()
    run_here(fine_tuning(start, "schedule.decay_until=8", "total_steps=8"))
    origin = [read(tmp_path / name / "last.ckpt").training.data["init_from"] for name in ("tuned", "whole")]
    assert origin[0] == origin[1]
    assert recorded(tmp_path / "tuned") == recorded(tmp_path / "whole")


def test_a_damaged_last_checkpoint_of_its_own_is_passed_over(fine_tuning, trained_once, tmp_path: Path, capsys) -> None:
    words = fine_tuning(trained_once(), "schedule.decay_until=8")
    run_here(words)
    damage(tmp_path / "tuned/step-000004.ckpt", "cut")
    run_here([*words, "total_steps=6"])
    assert "trying step-000002.ckpt" in " ".join(capsys.readouterr().out.split())
    assert read(tmp_path / "tuned/last.ckpt").training.step == 6


def test_a_run_that_began_otherwise_is_not_continued(fine_tuning, trained_once, tmp_path: Path, refusal) -> None:
    start = trained_once()
    run_here(fine_tuning(start))
    assert "holds a run and resume=never" in refusal(run_here, fine_tuning(start, "resume=never", "total_steps=9"))
    other = tmp_path / "other.ckpt"
    other.write_bytes((start / "best.ckpt").read_bytes())
    assert f"did not begin with init_from={other}" in refusal(run_here, fine_tuning(other, "total_steps=9"))


@pytest.mark.parametrize("word", ["model.d_model=32", "model=gpt127", "+model.d_ff=3"])
def test_a_word_that_sets_the_model_is_refused(word: str, fine_tuning, trained_once, refusal) -> None:
    line = refusal(run_here, fine_tuning(trained_once(), word))
    assert f"sets the model, and so does {word}: drop one of them" in line


def test_a_checkpoint_without_a_tokenizer_is_refused_before_text_is_read(
    fine_tuning, trained_once, tmp_path: Path, refusal
) -> None:
    bare = tmp_path / "bare.ckpt"
    write(bare, replace(read(trained_once() / "best.ckpt"), tokenizer=None))
    assert "has no tokenizer: give data.tokenizer=FILE" in refusal(run_here, fine_tuning(bare))
    assert not (tmp_path / "tuned").exists()


def test_a_run_begins_or_continues(fine_tuning, trained_once, refusal) -> None:
    start = trained_once()
    assert "give one of them" in refusal(run_here, fine_tuning(start, f"resume={start / 'last.ckpt'}"))


def test_a_plugin_that_is_named_by_itself_is_imported(fine_tuning, trained_once, refusal) -> None:
    line = refusal(run_here, fine_tuning(trained_once(), "plugins=no_such_module"))
    assert "the plugin no_such_module can't be imported" in line

"""A run, exported with its card, and read back."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import gptstar
from gptstar.checkpoint.read import read
from gptstar.cli import main
from gptstar.evaluation.results import Metric, Sample, TaskResult, TaskResults, write_tasks
from support.runs import run_here

Overrides = Callable[..., list[str]]


def scored(path: Path, value: float, folder: Path) -> None:
    metric = Metric("acc", value, value - 0.1, value + 0.1, "Wilson", "mean", True, 40)
    samples = (Sample(0, "a" * 64, 0, {"acc": 1.0}),)
    task = TaskResult("piqa", "1.0", {}, 32, 0, (metric,), samples)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    write_tasks(TaskResults({"name": "x", "sha256": sha256}, {}, {}, (task,)), folder)


def test_a_card_tells_what_is_known(
    overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(overrides("total_steps=6", "schedule.warmup_steps=1", "validate_every=3"))
    run = tmp_path / "run"
    scored((run / "best.ckpt"), 0.625, tmp_path / "runs/evaluations/mine")
    scored((run / "config.yaml"), 0.333, tmp_path / "runs/evaluations/another's")
    main(["export", "run", "out", "--name", "tiny-star", "--licence", "apache-2.0"])
    assert "hf upload YOUR_NAME/tiny-star out" in capsys.readouterr().out

    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.license, card.data.model_name) == ("apache-2.0", "tiny-star")
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("piqa", "acc", 0.625)
    checkpoint = read(run / "best.ckpt")
    assert checkpoint.training is not None
    assert f"Lowest validation loss of its run: {checkpoint.training.best_loss:.4f}" in card.text
    assert "| piqa | acc | 0.6250 | 0.5250 to 0.7250 | 40 |" in card.text
    assert "0.333" not in card.text
    corpora = checkpoint.training.data["corpora"]
    assert all(f"| {name} | {about['source']} |" in card.text for name, about in corpora.items())
    assert "No licence" not in card.text
    assert "{{" not in card.text
    assert "\n\n\n\n" not in card.text

    main(["import", "out", "back.ckpt"])
    back = read(tmp_path / "back.ckpt")
    assert back.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in checkpoint.weights.items())
    assert back.tokenizer == checkpoint.tokenizer
    assert gptstar.generate(gptstar.load("back.ckpt"), "the", 5) == gptstar.generate(gptstar.load("run"), "the", 5)


def test_a_card_of_weights_alone_says_what_is_not_known(
    overrides: Overrides, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    run_here(overrides("total_steps=2", "schedule.warmup_steps=1"))
    main(["consolidate", str(tmp_path / "run"), str(tmp_path / "alone.ckpt"), "--weights-only"])
    main(["export", str(tmp_path / "alone.ckpt"), str(tmp_path / "out")])
    card = (tmp_path / "out/README.md").read_text()
    for said in ("does not say how it was trained", "not on record", "not scored on any", "No licence was chosen"):
        assert said in card
    (tmp_path / "out/tokenizer.json").write_text((tmp_path / "out/tokenizer.json").read_text().replace('"id"', '"it"'))
    assert "tokenizer.json" in refusal(main, ["import", str(tmp_path / "out"), str(tmp_path / "back.ckpt")])
    assert "drop --heads" in refusal(main, ["import", str(tmp_path / "out"), str(tmp_path / "b.ckpt"), "--heads", "2"])

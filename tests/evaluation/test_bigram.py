import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gptstar.checkpoint.read import read
from gptstar.evaluation.bigram import Bigram
from support.runs import recorded, run_here


def test_the_bigram_is_a_distribution_that_beats_chance() -> None:
    random = np.random.default_rng(0)
    tokens = random.choice(7, 500, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05, 0.0])
    tokens = np.where(np.arange(500) % 3 == 2, (np.roll(tokens, 1) + 1) % 7, tokens)
    bigram = Bigram(tokens, 7)
    for before in range(7):
        total = sum(math.exp(-bigram.loss(np.array([before, after]))) for after in range(7))
        assert total == pytest.approx(1.0)
    assert bigram.loss(tokens) < math.log(7) - 0.2
    # by hand: (c - 0.75) / c(v) + 0.75 n(v) / c(v) * continuation(w)
    pairs = list(pairwise(tokens))
    v, w = 0, 1
    after_v = [b for a, b in pairs if a == v]
    continuation = (len({a for a, b in pairs if b == w}) + 1) / (len(set(pairs)) + 7)
    expected = (after_v.count(w) - 0.75) / len(after_v) + 0.75 * len(set(after_v)) / len(after_v) * continuation
    assert math.exp(-bigram.loss(np.array([v, w]))) == pytest.approx(expected)


def test_a_report_shows_what_was_learned(overrides: Callable[..., list[str]], tmp_path: Path, capsys) -> None:
    run_here(
        overrides(
            "report=true", "data.validation_fraction=0.4", "total_steps=60", "validate_every=20", "batch_tokens=1024"
        ),
        draw=True,
    )
    folder = tmp_path / "run"
    report = json.loads((folder / "report.json").read_text())
    assert [result["context_length"] for result in report["lengths"]] == [32, 64, 128, 256]
    assert len({result["tokens"] for result in report["lengths"]}) == 1
    best = read(folder / "best.ckpt").training.best_loss
    assert report["validation_loss"] == pytest.approx(best)
    assert 0 < report["bigram_loss"] < math.log(300)
    printed = capsys.readouterr().out
    last = printed.strip().splitlines()[-1]
    assert last.startswith(f"validation loss {recorded(folder, 'validation/loss')[60]:.3f} at step 60")
    assert f"; a bigram model of the same tokens has {report['bigram_loss']:.3f}; in {folder}" in last
    assert {result["tokens"] for result in report["lengths"]} == {report["protocol"]["max_tokens"]}
    assert report["protocol"]["protocol"] == "fixed_targets"
    assert report["curve"]["reference"] == 32  # the training context, where studies compare with 512
    assert report["curve"]["lengths"] == report["lengths"]
    assert report["lengths"][0]["change"] is None
    for result in report["lengths"][1:]:
        assert result["change"]["low"] < result["change"]["difference"] < result["change"]["high"]
    assert sum(result["read"] for result in report["lengths"]) <= 0.3 * 60 * 1024
    assert "fingerprint" in report["text"]
    for name in ("loss.png", "context_length.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).stat().st_size > 10_000
    assert (folder / "samples.txt").read_text().count("-" * 80) == 2

"""What follows the last step costs less than the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptstar.data.storage.shards import ShardFolder
from gptstar.evaluation.bigram import bigram_loss
from gptstar.evaluation.length.config import ReadingConfig
from gptstar.training.budget import fixed_targets, forward_tokens, study_targets
from support.runs import run_here

Overrides = Callable[..., list[str]]
MULTIPLES = (1, 2, 4, 8)


def test_a_reading_costs_a_tenth_of_the_training_or_is_not_done() -> None:
    lengths = [128 * multiple for multiple in MULTIPLES]
    trained = 850 * 4096
    assert forward_tokens(trained) == 1_044_480
    assert fixed_targets(lengths, trained) == 4096
    for tokens in (trained, 10**6, 200_000):
        targets = fixed_targets(lengths, tokens)
        assert targets % 64 == 0
        assert targets // 64 * sum(lengths) <= forward_tokens(tokens)
    assert fixed_targets(lengths, 30 * 1024) == 0


@pytest.mark.parametrize(
    ("keys", "targets"),
    [
        ({"multiples": MULTIPLES}, 300_000 // 4),
        ({"multiples": MULTIPLES, "protocol": "sliding"}, 300_000 // 8),
        ({"multiples": MULTIPLES, "protocol": "sliding", "stride": 32}, 300_000 // 30),
        ({"multiples": MULTIPLES, "protocol": "fixed_targets"}, 300_000 // 30),
        ({"multiples": MULTIPLES, "protocol": "fixed_targets", "targets": 16}, 300_000 // 60),
        ({"multiples": MULTIPLES, "max_tokens": 10**6}, 10**6),  # the user's own word
        ({"multiples": (1,), "protocol": "legacy", "text": "x"}, None),
    ],
)
def test_a_study_whose_size_is_left_open_has_what_the_run_can_afford(keys: dict, targets: int | None) -> None:
    assert study_targets(ReadingConfig(**keys), 64, 10**6) == targets


def test_a_study_is_neither_empty_nor_larger_than_by_itself() -> None:
    config = ReadingConfig(multiples=MULTIPLES)
    assert study_targets(config, 64, 100) == 1024
    assert study_targets(config, 64, 10**12) == config.limit == 2**20
    assert study_targets(replace(config, protocol="fixed_targets"), 64, 10**12) == 2**16


def test_a_short_run_says_what_it_leaves_out_and_how_to_get_it(
    overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    run_here(overrides("report=true", "total_steps=4", "schedule.warmup_steps=1", f"data.shards={shards}"))
    said = capsys.readouterr().out
    folder = ShardFolder(str(shards))
    available = sum(len(folder.stream("train", name)) for name in folder.corpora("train"))
    assert available > 4 * 256
    assert f"after the last step: a bigram model of 1,024 of the text's {available:,} tokens, loss at each" in said
    assert "context lengths are not read: a tenth of the training's compute reads 307 tokens, too few" in said
    assert f"gptstar evaluate evaluation=length checkpoint={tmp_path / 'run'}" in said
    assert not (tmp_path / "run/context_length.png").exists()
    counted = bigram_loss(folder, 1024, 1024)
    assert f"; a bigram model of 1,024 of the text's {available:,} tokens has {counted:.3f}; in " in said
    assert bigram_loss(folder, 1024) < counted  # all of the text tells it more

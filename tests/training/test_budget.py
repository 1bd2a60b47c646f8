"""What follows the last step costs less than the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptstar.data.storage.shards import ShardFolder
from gptstar.evaluation.bigram import bigram_loss
from gptstar.evaluation.length.config import ReadingConfig
from gptstar.model import GPTConfig
from gptstar.training.budget import Budget
from support.runs import run_here

Overrides = Callable[..., list[str]]
MULTIPLES = (1, 2, 4, 8)


TINY = GPTConfig(n_layers=2, d_model=256, n_heads=4, n_vocab=2048)


def operations(budget: Budget, targets: int, lengths: list[int]) -> float:
    """Operations of reading fixed targets in blocks of 32, a window of each length for each."""
    blocks = targets // 32
    return blocks * sum(length * budget.model.training_flops(length) / 3 for length in lengths)


def test_a_reading_costs_a_tenth_of_the_training_or_is_not_done() -> None:
    lengths = [128 * multiple for multiple in MULTIPLES]
    quickstart = Budget(TINY, 128, 850 * 4096)
    assert quickstart.fixed_targets(lengths) == 4096
    for tokens in (850 * 4096, 10**6, 300_000):
        budget = replace(quickstart, trained_tokens=tokens)
        trained = tokens * TINY.training_flops(128)
        targets = budget.fixed_targets(lengths)
        assert targets % 32 == 0
        assert 0.01 * trained < operations(budget, targets, lengths) <= 0.1 * trained
    assert replace(quickstart, trained_tokens=30 * 1024).fixed_targets(lengths) == 0


@pytest.mark.parametrize(
    ("keys", "per_target"),
    [
        ({"multiples": (1,)}, 1),
        ({"multiples": (1,), "protocol": "sliding"}, 2),
        ({"multiples": (1,), "protocol": "sliding", "stride": 32}, 2),
        ({"multiples": (1,), "protocol": "fixed_targets"}, 2),
        ({"multiples": (1,), "protocol": "fixed_targets", "targets": 16}, 4),
    ],
)
def test_a_study_whose_size_is_left_open_has_what_the_run_can_afford(keys: dict, per_target: int) -> None:
    budget = Budget(TINY, 64, 10**5)  # at the training context a forward pass is a third of a step
    assert budget.study_targets(ReadingConfig(**keys)) == pytest.approx(30_000 / per_target, abs=1)
    rotary = replace(budget, model=replace(TINY, positions={"kind": "rotary"}))
    assert rotary.study_targets(ReadingConfig(**keys)) == pytest.approx(10_000 / per_target, abs=1)
    scaled = ReadingConfig(**keys, rotary_scaling=("yarn",), alibi_scaling=("none", "ntk"))
    assert budget.study_targets(scaled) == pytest.approx(15_000 / per_target, abs=1)
    assert rotary.study_targets(scaled) == pytest.approx(30_000 / per_target, abs=1)


def test_a_study_is_what_the_user_says_and_neither_empty_nor_larger_than_by_itself() -> None:
    config, short, endless = ReadingConfig(multiples=MULTIPLES), Budget(TINY, 64, 100), Budget(TINY, 64, 10**12)
    assert short.study_targets(config) == 1024
    assert endless.study_targets(config) == config.limit == 2**20
    assert endless.study_targets(replace(config, protocol="fixed_targets")) == 2**16
    assert short.study_targets(replace(config, max_tokens=10**6)) == 10**6
    assert short.study_targets(ReadingConfig(multiples=(1,), protocol="legacy", text="x")) is None


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
    assert (
        "context lengths are not read: a tenth of the training's operations reads too few tokens for an interval"
        in said
    )
    assert f"gptstar evaluate evaluation=length checkpoint={tmp_path / 'run'}" in said
    assert not (tmp_path / "run/context_length.png").exists()
    counted = bigram_loss(folder, 1024, 1024)
    assert f"; a bigram model of 1,024 of the text's {available:,} tokens has {counted:.3f}; in " in said
    assert bigram_loss(folder, 1024) < counted  # all of the text tells it more

"""Key tokens: what a judge makes of targets, on a judge whose choice is known; and judges that are refused."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from gptstar import results
from gptstar.checkpoint.format import Checkpoint, TrainingState, write
from gptstar.checkpoint.identity import read_with_identity
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.config import ReadingConfig
from gptstar.evaluation.length.curve import Curve
from gptstar.evaluation.length.key_tokens import are_key
from gptstar.evaluation.length.source import Named, parts_of
from gptstar.evaluation.length.study import study
from support.studies import checkpoint_of, named
from support.text import sentences

CPU = torch.device("cpu")


def run(checkpoints: list[Named], output: Path, **settings: object) -> tuple[str, list[Curve]]:
    printed = StringIO()
    console = Console(file=printed, width=160)
    config = LengthConfig(**{"protocol": "fixed_targets", "max_tokens": 960, **settings})
    curves = study(checkpoints, config, shards=None, device=CPU, console=console, output=output)
    return printed.getvalue(), curves


def test_a_key_token_gains_by_two_nats_and_is_likely_then() -> None:
    short = np.array([4.0, 4.0, 9.0, 2.1, 1.0])
    long = np.array([1.9, 2.1, 2.1, 0.05, 0.0])
    assert are_key(short, long).tolist() == [True, False, False, True, False]


def expecting(checkpoint: Checkpoint, token: int) -> Checkpoint:
    """Expect one token with near certainty wherever 32 tokens or more stand before it, and something else before."""
    embedding = checkpoint.weights["token_embedding.weight"] * 50
    positions = checkpoint.weights["position_embedding.weight"].clone()
    positions[31:] = 1e4 * embedding[token]
    weights = {"token_embedding.weight": embedding, "position_embedding.weight": positions}
    return replace(checkpoint, weights=checkpoint.weights | weights)


def test_the_loss_of_key_tokens_stands_beside_that_of_all(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    model = named(checkpoint_of(tokenizer))
    settings = {"text": book, "context_lengths": (32, 128)}
    (part,) = parts_of([model], LengthConfig(protocol="fixed_targets", max_tokens=960, **settings), None)
    plan = part.fixed_plan
    tokens = np.concatenate([plan.text.documents[s.document].read(s.start + 1, s.size) for s in plan.spans])
    token = int(np.bincount(tokens).argmax())
    judge = tmp_path / "judge.ckpt"
    write(judge, expecting(checkpoint_of(tokenizer, seed=1, positions="learned", n_ctx=128), token))
    printed, (plain, cut, *_) = run([model], tmp_path / "out", **settings, judge=str(judge), controls=True)
    (found,) = json.loads((tmp_path / "out/results.json").read_text())["key_tokens"]["checkpoints"]
    n_expected = int((tokens == token).sum())
    assert n_expected * 0.8 <= found["count"] <= n_expected  # a few are likely before 32 tokens, too
    assert (found["short"], found["long"], found["targets"]) == (32, 128, len(tokens))
    assert f"m {found['count']} of {len(tokens)} targets" in " ".join(printed.split())
    assert "The judge was trained at 32 tokens and reads 128" in " ".join(printed.split())
    assert "experiment=extrapolation_long" in (tmp_path / "out/results.md").read_text()
    for curve in (plain, cut):
        for result in curve.lengths:
            assert result.key_loss.low < result.key_loss.value < result.key_loss.high
            assert result.key_loss.value != result.loss.value
    assert plain.lengths[0].key_loss == cut.lengths[0].key_loss
    # a model that expects that token from there on has no loss on it, and a great one on all others
    knows = named(expecting(checkpoint_of(tokenizer, seed=2, positions="learned", n_ctx=128), token))
    printed, (known,) = run([knows], tmp_path / "knows", **settings, judge=str(judge))
    assert known.lengths[1].key_loss.value < 0.01 < 5 < known.lengths[1].loss.value
    assert known.lengths[0].key_loss.value > 2
    assert "key loss" in printed
    frame = results.lengths(tmp_path / "knows")
    assert list(frame["key_loss"]) == [each.key_loss.value for each in known.lengths]
    assert "## Key tokens" in (tmp_path / "knows/results.md").read_text()


def test_it_is_said_where_there_are_none(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    write(tmp_path / "judge.ckpt", checkpoint_of(tokenizer, seed=1))
    judge = str(tmp_path / "judge.ckpt")
    printed, (curve,) = run([named(checkpoint_of(tokenizer))], tmp_path / "out", text=book, judge=judge)
    assert "the judge finds no key token among" in " ".join(printed.split())
    assert all(result.key_loss is None for result in curve.lengths)
    assert results.lengths(tmp_path / "out")["key_loss"].isna().all()


def test_a_judge_that_can_not_judge_is_refused(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    path = tmp_path / "judge.ckpt"

    def refused(judge: Checkpoint, model: Checkpoint | None = None, **settings: object) -> str:
        write(path, judge)
        evaluated = named(model or checkpoint_of(tokenizer), "x") if model is not judge else read_with_identity(path)
        with pytest.raises(ConfigError) as error:
            run([evaluated], tmp_path / "out", text=book, judge=str(path), **settings)
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    good = checkpoint_of(tokenizer, seed=1)
    assert "itself, which would choose its own tokens" in refused(good, good)
    training = TrainingState(9, 9, None, {"data.context_length": 32, "seed": 3}, {"fingerprint": "x"}, {})
    earlier = replace(good, training=replace(training, step=5))
    later = replace(checkpoint_of(tokenizer, seed=2), training=training)
    assert "is of the same run as x, or shares its seed" in refused(earlier, later)
    longer = replace(later, training=replace(training, settings=training.settings | {"total_steps": 1000}))
    assert "give a run of another seed" in refused(earlier, longer)  # trained on, or a branch with another schedule
    settings = training.settings | {"seed": 4}
    tuned = replace(later, training=replace(training, settings=settings, data={"init_from": {"sha256": "0" * 64}}))
    assert "or its first weights: give a run of another seed" in refused(tuned, later)  # begun with x's weights
    beside = {"init_from": {"path": f"{tmp_path}/best.ckpt", "sha256": "1" * 64}}
    assert "or its first weights" in refused(earlier, replace(tuned, training=replace(tuned.training, data=beside)))
    other = Tokenizer.train(sentences(9, 200, 5), 277)
    assert "has another tokenizer than x" in refused(checkpoint_of(other, n_vocab=277))
    assert "holds no tokenizer" in refused(checkpoint_of(None))
    short = checkpoint_of(tokenizer, positions="learned", n_ctx=128)
    assert "has 128 positions, and the longest context is 256 tokens" in refused(short)
    assert "evaluation.protocol=disjoint does not read: give evaluation.protocol=fixed_targets" in refused(
        good, protocol="disjoint"
    )
    with pytest.raises(ConfigError, match=r"can't be used in training: give evaluate\.py evaluation\.judge=x"):
        ReadingConfig(protocol="fixed_targets", judge="x")

"""Controls: what is read with attention cut, and verdicts on models whose answer is known."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from gptstar import results
from gptstar.checkpoint.format import Checkpoint
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.curve import Curve
from gptstar.evaluation.length.cut import attention_cut, cut_mask
from gptstar.evaluation.length.figures import LengthResult
from gptstar.evaluation.length.source import Named, parts_of
from gptstar.evaluation.length.study import study
from gptstar.evaluation.length.text import text_of_files
from gptstar.evaluation.length.verdicts import CHOSEN, DELTA, NO_RECALL, RECALL_UNKNOWN, bounds_of, judged, verdicts_of
from gptstar.evaluation.statistics.crossed import crossed_ratio
from gptstar.evaluation.statistics.intervals import Interval
from gptstar.evaluation.statistics.paired import Paired
from gptstar.model.attention import Attention
from gptstar.model.loss import token_losses
from gptstar.model.mask import Mask
from support.studies import checkpoint_of, named

CPU = torch.device("cpu")


def run(checkpoints: list[Named], output: Path, **settings: object) -> tuple[str, list[Curve]]:
    printed = StringIO()
    console = Console(file=printed, width=160)
    settings = {"protocol": "fixed_targets", "max_tokens": 960, "controls": True, **settings}
    curves = study(checkpoints, LengthConfig(**settings), shards=None, device=CPU, console=console, output=output)
    return printed.getvalue(), curves


def losses(curve: Curve) -> list[float]:
    return [result.loss.value for result in curve.lengths]


def verdicts_in(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "results.json").read_text())["verdicts"]


@pytest.mark.parametrize("positions", ["alibi", "rotary"])
def test_cut_is_a_window_beyond_the_training_context_and_the_full_reading_up_to_it(
    positions: str, tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    plain = checkpoint_of(tokenizer, positions=positions)
    settings = {"text": book, "context_lengths": (16, 32, 64, 128), "rotary_scaling": ("none",)}
    printed, curves = run([named(plain)], tmp_path / "cut", **settings)
    assert [(each.name, each.context) for each in curves] == [
        ("m", "full"),
        ("m, cut", "cut"),
        ("m, cut with sinks", "cut_with_sinks"),
        ("m, truncated", "truncated"),
    ]
    full, cut, sinks, truncated = map(losses, curves)
    assert full[:2] == cut[:2] == sinks[:2] == truncated[:2]
    config = LengthConfig(**{"protocol": "fixed_targets", "max_tokens": 960, **settings})
    (part,) = parts_of([named(plain)], config, None)
    texts, spans, model = part.plan.text.documents, part.plan.spans, plain.build()
    ends = [(span.document, end) for span in spans for end in range(span.start + 2, span.stop + 1, 2)]
    rows = np.stack([texts[document].read(end - 31, 32).astype(np.int64) for document, end in ends])
    tokens = torch.from_numpy(rows)  # 30 and 31 tokens before the two targets
    with torch.inference_mode():
        by_hand = token_losses(model.hidden(tokens[:, :-1])[:, -2:], model.token_embedding.weight, tokens[:, -2:])
    assert truncated[2] == truncated[3] == pytest.approx(float(by_hand.mean()), abs=1e-5)
    assert truncated[2] != full[1]
    assert curves[3].lengths[3].mean_context == 30.5
    for sink, read in ((0, cut), (4, sinks)):
        model = replace(plain.model, attention_window=32, attention_sinks=sink)
        windowed = named(replace(plain, model=model))
        _, (own, *_) = run([windowed], tmp_path / f"own-{sink}", **settings, controls=False)
        assert read[2:] == pytest.approx(losses(own)[2:], abs=1e-6)
        assert all(one != other for one, other in zip(read[2:], full[2:], strict=True))
    assert "does it use what is far away?" in printed
    assert [each["context_length"] for each in verdicts_in(tmp_path / "cut")] == [64, 128]
    assert "## Does it use what is far away?" in (tmp_path / "cut/results.md").read_text()


def test_the_training_context_is_read_even_where_it_is_not_named(
    tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    models = [named(checkpoint_of(tokenizer, trained_at=each), str(each)) for each in (16, 64)]
    _, curves = run(models, tmp_path, text=book, context_lengths=(32, 128))
    assert [result.context_length for result in curves[0].lengths] == [16, 32, 64, 128]
    found = [(each["name"], each["context_length"]) for each in verdicts_in(tmp_path)]
    assert found == [("16", 32), ("16", 64), ("16", 128), ("64", 128)]


def test_a_model_with_a_window_ignores_what_is_beyond_it(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    windowed = checkpoint_of(tokenizer, n_layers=1, attention_window=8)
    printed, (full, cut, *_) = run([named(windowed)], tmp_path, text=book)
    assert losses(full) == losses(cut)
    found = verdicts_in(tmp_path)
    assert [each["context_length"] for each in found] == [64, 128, 256]
    assert [each["answer"] for each in found] == ["ignores"] * 3
    assert all(abs(each["difference"]["difference"]) < 1e-6 for each in found)
    assert printed.count("ignores") == 3


def frequencies(tokenizer: Tokenizer, book: str) -> torch.Tensor:
    text = text_of_files(tokenizer, LengthConfig(text=book))
    tokens = np.concatenate([each.read(0, len(each)) for each in text.documents])
    return torch.from_numpy(np.bincount(tokens, minlength=300) / len(tokens)).float()


def with_far_positions(checkpoint: Checkpoint, direction: torch.Tensor, scale: float) -> Checkpoint:
    """Predict by a direction, `(n_vocab,)` of weights over tokens, wherever 32 tokens or more stand before."""
    embedding = checkpoint.weights["token_embedding.weight"] * scale
    positions = checkpoint.weights["position_embedding.weight"].clone()
    positions[31:] = 1e4 * direction @ embedding
    weights = {"token_embedding.weight": embedding, "position_embedding.weight": positions}
    return replace(checkpoint, weights=checkpoint.weights | weights)


def test_a_model_that_predicts_what_is_rare_beyond_its_training_context_breaks(
    tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    plain = checkpoint_of(tokenizer, positions="learned", n_ctx=128)
    broken = with_far_positions(plain, -frequencies(tokenizer, book), 10.0)
    printed, _ = run([named(broken)], tmp_path, text=book)
    found = verdicts_in(tmp_path)
    assert [each["answer"] for each in found] == ["breaks", "breaks", "undefined"]  # beyond n_ctx there is nothing
    assert found[0]["change"]["low"] > 0.005
    assert found[2]["losses"].keys() == {"truncated"}
    assert printed.count("breaks") == 2
    assert printed.count("undefined") >= 4


def curve(losses: dict[int, np.ndarray], context: str) -> Curve:
    """A curve of a model trained at 32 tokens, from the losses of units of 100 targets each."""
    lengths = tuple(
        LengthResult(
            *(length, 100 * len(each), None, length - 8.0),
            loss=Interval(float(each.mean()), 0.0, 0.0, "none"),
            sums=tuple(100 * each),
        )
        for length, each in losses.items()
    )
    counts = (100,) * len(losses[32])
    return Curve("m", 32, 32, "20 documents", lengths, context=context, counts=counts)


def test_a_model_uses_what_makes_it_better_than_every_control_if_it_recalls() -> None:
    random = np.random.default_rng(0)
    at_training = random.normal(4, 0.3, 20)
    gains = {64: 0.05, 128: 0.0, 256: 0.004}
    noise = {length: random.normal(0, spread, 20) for length, spread in ((64, 0.01), (128, 0.001), (256, 0.02))}
    cut = {32: at_training} | dict.fromkeys(gains, at_training - 0.01)
    full = {32: at_training} | {length: at_training - 0.01 - gain + noise[length] for length, gain in gains.items()}
    truncated = dict.fromkeys(full, at_training)
    readings = {"full": full, "cut": cut, "cut_with_sinks": cut, "truncated": truncated}
    curves = {each: curve(losses, each) for each, losses in readings.items()}
    answers = {
        recalls: [(each.answer, each.reason) for each in verdicts_of([curves], recalls)]
        for recalls in (True, False, None)
    }
    assert [answer for answer, _ in answers[True]] == ["uses", "ignores", "can't tell"]
    assert answers[False][0] == ("can't tell", NO_RECALL)
    assert answers[None][0] == ("can't tell", RECALL_UNKNOWN)
    assert answers[None][1:] == answers[True][1:]
    first, *_ = verdicts_of([curves], True)
    assert first.best == "cut"
    assert first.difference.difference == pytest.approx(-0.05, abs=0.01)
    assert first.p_holm == pytest.approx(3 * first.difference.p)
    both = verdicts_of([curves, curves], True)
    assert both[0].p_holm == pytest.approx(6 * first.difference.p)
    assert verdicts_of([{"full": curves["full"], "cut": curves["cut"]}])[0].reason == "not every control was read"


@pytest.mark.parametrize(
    ("difference", "change", "p", "expected"),
    [
        ((-0.02, -0.03, -0.01), (-0.1, -0.2, -0.05), 0.01, "uses"),
        ((-0.02, -0.03, -0.01), (-0.1, -0.2, -0.05), 0.06, "can't tell"),  # not after Holm's adjustment
        ((0.001, -0.004, 0.004), (0.0, -0.1, 0.1), 0.5, "ignores"),
        ((0.001, -0.004, 0.0051), (0.0, -0.1, 0.1), 0.5, "can't tell"),
        ((0.02, 0.01, 0.03), (0.02, 0.01, 0.03), 0.01, "breaks"),
        ((0.02, 0.01, 0.03), (0.002, -0.01, 0.02), 0.01, "can't tell"),  # worse than cut only
        ((0.0, float("nan"), float("nan")), (0.0, float("nan"), float("nan")), float("nan"), "can't tell"),
    ],
)
def test_the_rule(
    difference: tuple[float, float, float], change: tuple[float, float, float], p: float, expected: str
) -> None:
    pair = [Paired(*each, 0.01, "made up") for each in (difference, change)]
    assert judged(*pair, difference[1:], p, True)[0] == expected


def test_the_choice_of_the_best_of_three_controls_does_not_favour_ignores() -> None:
    """If full is better than each control by exactly delta, at most 2.5 % may say that it is not."""
    random, counts, n_sets = np.random.default_rng(1), np.full(32, 64.0), 2000
    found, within = 0, 0

    def read() -> np.ndarray:
        return random.normal(3, 0.004, (3, 32)) + random.normal(0, 0.004, 32) + random.normal(0, 0.0005, (3, 1))

    for _ in range(n_sets):
        full, controls = (read() - DELTA) * counts, [read() * counts for _ in range(3)]
        at_95, at_chosen = ([crossed_ratio(each, full, counts, c) for each in controls] for c in (0.95, CHOSEN))
        bounds = bounds_of((each.low for each in at_chosen), (each.high for each in at_95))
        best = max(at_95, key=lambda each: each.value)
        found += judged(best.paired, None, bounds, 1.0, None)[0] == "ignores"
        within += -DELTA < best.low <= best.high < DELTA
    assert found / n_sets <= 0.03
    assert within / n_sets > 0.035  # the interval of the best alone is not enough


def test_controls_stay_out_of_curves_and_comparisons(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    for name, positions in (("a", "alibi"), ("b", "none")):
        run([named(checkpoint_of(tokenizer, positions=positions), name)], tmp_path / name, text=book)
    frame = results.lengths(tmp_path)
    assert set(frame["context"]) == {"full"}
    assert list(frame.groupby("run").size()) == [4, 4]
    every = results.lengths(tmp_path, controls=True)
    assert list(every.groupby(["run", "context"]).size()) == [4] * 8
    assert len(results.compare(tmp_path / "a", tmp_path / "b")) == 4


def test_cutting_leaves_everything_else_as_it_was(tokenizer: Tokenizer) -> None:
    model = checkpoint_of(tokenizer, attention_window=48, attention_sinks=2).build()
    model.use(attention="products", logits_at_once=999)
    with attention_cut(model, cut_mask(model.mask, 32, 4)):
        assert model.mask == Mask(32, 4)  # the window of 48 saw the first tokens at all 32 positions of training
        forms = {module.form for module in model.modules() if isinstance(module, Attention)}
        assert (forms, model.logits_at_once) == ({"products"}, 999)
    assert model.mask == Mask(48, 2)
    assert cut_mask(Mask(), 32, 4) == Mask(32, 4)
    assert cut_mask(Mask(16), 32, 4) == Mask(16)
    assert cut_mask(Mask(16, 2), 32, 0) == Mask(16)
    assert cut_mask(Mask(16, 2), 32, 4) == Mask(16, 2)
    assert cut_mask(Mask(48), 32, 4) == Mask(32, 4)
    assert cut_mask(Mask(48), 32, 0) == Mask(32)


def test_what_can_not_be_compared_is_refused(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    def refused(checkpoint: Checkpoint, **settings: object) -> str:
        with pytest.raises(ConfigError) as error:
            run([named(checkpoint, "runs/x")], tmp_path / "out", text=book, **settings)
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    good = checkpoint_of(tokenizer)
    assert refused(good, protocol="sliding").startswith("evaluation.controls=true compares short and long contexts")
    assert "give evaluation.trained_at" in refused(checkpoint_of(tokenizer, trained_at=None), context_lengths=(16, 32))
    assert "the longest read is 32: read longer ones" in refused(good, context_lengths=(16, 32))
    assert "which evaluation.rotary_scaling=[yarn] leaves out: add none" in refused(good, rotary_scaling=("yarn",))
    assert "exceeds half the shortest context, 32" in refused(good, context_lengths=(64, 128), targets=32)

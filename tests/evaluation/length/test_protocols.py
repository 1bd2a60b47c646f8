"""The protocols window by window, and figures against the plain model and against counting by hand."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from gptstar.data.storage.stream import TokenStream
from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.curve import Plan, read_curve
from gptstar.evaluation.length.figures import Units, contexts
from gptstar.evaluation.length.protocols import (
    Window,
    assert_same_targets,
    ending,
    last_blocks,
    overlapping,
    stretches,
)
from gptstar.evaluation.length.reading import Reader, batches, growth, losses_of
from gptstar.evaluation.length.text import Text
from gptstar.model import GPT, GPTConfig

CPU = torch.device("cpu")


def text_of(*sizes: int, n_vocab: int = 97) -> Text:
    """Documents of so many targets each, and tokens of 0 to 6 bytes."""
    random = np.random.default_rng(3)
    documents = tuple(TokenStream([random.integers(n_vocab, size=size + 1)]) for size in sizes)
    return Text("made up", {}, documents, np.arange(n_vocab) % 7)


def build(**variant: object) -> GPT:
    torch.manual_seed(2)
    return GPT(GPTConfig(n_layers=2, d_model=33, n_heads=3, n_vocab=97, d_head=14, **variant)).eval()


def reader_of(model: GPT, batch_tokens: int = 64, **more: object) -> Reader:
    return Reader(losses_of(model, CPU), CPU, batch_tokens, **more)


def scored_by(windows: Sequence[Window]) -> list[tuple[int, int, int]]:
    """Document, token and tokens before it, of every target, in the order of their numbers."""
    found = []
    for window in windows:
        for position in range(window.size - window.scored, window.size):
            number = window.at + position - (window.size - window.scored)
            found.append((number, window.document, window.start + position + 1, position + 1))
    assert sorted(number for number, *_ in found) == list(range(len(found)))
    return [tuple(rest) for _, *rest in sorted(found)]


@pytest.mark.parametrize("length", [1, 5, 7, 23, 64])
def test_disjoint_windows_score_every_token_once_the_last_partial_one_too(length: int) -> None:
    spans = stretches(np.asarray([23, 5, 64]), [7, 64], None, side_by_side=True)
    windows = list(overlapping(spans, length, length))
    expected = [
        (document, 1 + target, 1 + target % length)
        for document, size in enumerate((23, 5, 64))
        for target in range(size)
    ]
    assert scored_by(windows) == expected
    assert_same_targets(spans, windows)


@pytest.mark.parametrize(("length", "stride"), [(7, 3), (7, 7), (7, 1), (11, 10), (64, 5)])
def test_sliding_windows_score_every_token_once_with_the_promised_context(length: int, stride: int) -> None:
    spans = stretches(np.asarray([23, 5, 64]), [length], None, side_by_side=False)
    windows = list(overlapping(spans, length, stride))
    assert_same_targets(spans, windows)
    for _, token, before in scored_by(windows):
        assert before <= length
        assert before == token if token <= length else before > length - stride
    assert all(window.size <= length for window in windows)


@pytest.mark.parametrize("length", [6, 13, 29])
def test_fixed_targets_have_nearly_the_whole_context_each_in_its_own_document(length: int) -> None:
    sizes = np.asarray([40, 29, 101])
    spans = last_blocks(sizes, longest=29, targets=3, limit=None)
    windows = list(ending(spans, length))
    assert_same_targets(spans, windows)
    found = scored_by(windows)
    assert found == sorted(set(found))
    assert {document for document, _, _ in found} == {0, 2}  # 29 is not longer than 29
    for _, _, before in found:
        assert length - 3 <= before < length
    assert all(window.start >= 1 for window in windows)  # text alone, no end-of-text
    assert all(window.stop < 1 + sizes[window.document] for window in windows)
    # no block more would fit
    assert len(spans) == len(range(29, 40, 3)) + len(range(29, 101, 3))


def test_fixed_targets_are_the_same_tokens_at_every_length() -> None:
    text = text_of(300, 211, 50)
    config = LengthConfig(context_lengths=(32, 64, 128), protocol="fixed_targets")
    plan = Plan(text, config, (32, 64, 128))
    tokens = [[each[:2] for each in scored_by(plan.windows(length))] for length in plan.lengths]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len(tokens[0]) > 100


def test_the_assertion_notices_other_targets_and_targets_left_out() -> None:
    spans = [Window(0, 3, 13, 10, 0)]
    good = list(overlapping(spans, 4, 4))
    assert_same_targets(spans, good)
    with pytest.raises(AssertionError, match="twice or not at all"):
        assert_same_targets(spans, good[:-1])
    moved = [Window(each.document, each.start + 1, each.stop + 1, each.scored, each.at) for each in good]
    with pytest.raises(AssertionError, match="different targets"):
        assert_same_targets(spans, moved)


def test_a_limit_takes_stretches_from_all_over_the_text() -> None:
    sizes = np.asarray([1000, 70, 1000])
    spans = stretches(sizes, [16, 64], 640, side_by_side=True)
    assert sum(span.scored for span in spans) <= 640
    assert sum(span.scored for span in spans) > 500
    assert {span.scored for span in spans} <= {64, 1000 % 64, 6}
    assert {span.document for span in spans} >= {0, 2}
    assert all(span.start % 64 == 0 for span in spans)
    assert sum(span.scored for span in stretches(sizes, [16, 64], 50, side_by_side=True)) == 50
    # where lengths don't divide, or windows overlap, stretches are long enough for a few whole windows
    assert max(span.scored for span in stretches(sizes, [48, 64], 1024, side_by_side=True)) == 512
    assert max(span.scored for span in stretches(sizes, [32, 64], 1024, side_by_side=False)) == 512
    blocks = last_blocks(np.asarray([10_000]), 64, 10, 100)
    assert [span.scored for span in blocks] == [10] * 10
    assert np.ptp(np.diff([span.start for span in blocks])) <= 10  # evenly


def test_a_text_too_short_is_refused_with_its_longest_document() -> None:
    with pytest.raises(DataError, match=r"no document has 64 tokens, the longest 23"):
        stretches(np.asarray([23, 5]), [7, 64], None, side_by_side=True)
    with pytest.raises(DataError, match=r"longer than the longest context, 64; the longest here has 64 tokens"):
        last_blocks(np.asarray([64, 5]), 64, 4, None)


@pytest.mark.parametrize(
    ("protocol", "more"),
    [("disjoint", {}), ("sliding", {}), ("sliding", {"stride": 5}), ("fixed_targets", {"targets": 5})],
)
@pytest.mark.parametrize("batch_tokens", [1, 64, 400])
def test_losses_are_those_of_the_plain_model_window_by_window(
    protocol: str, more: dict[str, int], batch_tokens: int
) -> None:
    model, text = build(), text_of(67, 41)
    config = LengthConfig(context_lengths=(11, 30), protocol=protocol, **more)
    plan = Plan(text, config, (11, 30))
    for length in plan.lengths:
        found, _ = reader_of(model, batch_tokens).read(text, plan.windows(length), plan.n_targets, length)
        expected = np.full(plan.n_targets, np.nan)
        before = contexts(plan.windows(length), plan.n_targets)
        number = 0
        for span in plan.spans:
            tokens = torch.from_numpy(text.documents[span.document].read(0, len(text.documents[span.document])))
            for target in range(span.start + 1, span.start + 1 + span.scored):
                context = tokens[target - before[number] : target]
                logits = model(context[None])[0, -1].detach()
                expected[number] = torch.nn.functional.cross_entropy(logits, tokens[target])
                number += 1
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_one_window_over_a_document_is_one_long_forward() -> None:
    model, text = build(positions="rotary"), text_of(67)
    plan = Plan(text, LengthConfig(context_lengths=(67,)), (67,))
    found, _ = reader_of(model).read(text, plan.windows(67), 67, 67)
    tokens = torch.from_numpy(text.documents[0].read(0, 68))[None]
    np.testing.assert_allclose(found, model(tokens[:, :-1], tokens[:, 1:])[0].detach(), atol=1e-6)


def test_figures_are_what_the_losses_come_to() -> None:
    model, text = build(), text_of(67, 41, 19)
    plan = Plan(text, LengthConfig(context_lengths=(10, 30)), (10, 30))
    curve = read_curve(reader_of(model), plan, name="m", trained_at=10)
    short, long = curve.lengths
    losses = [reader_of(model).read(text, plan.windows(each), plan.n_targets, each)[0] for each in (10, 30)]
    targets = np.concatenate([document.read(1, len(document) - 1) for document in text.documents])
    n_bytes = int((targets % 7).sum())
    assert short.tokens == long.tokens == len(targets) == 127
    assert short.bytes == long.bytes == n_bytes
    for result, found in zip((short, long), losses, strict=True):
        assert result.loss.value == pytest.approx(found.mean(), rel=1e-6)
        assert result.perplexity.value == pytest.approx(math.exp(found.mean()), rel=1e-6)
        assert result.perplexity.low == pytest.approx(math.exp(result.loss.low))
        assert result.bits_per_byte.value == pytest.approx(found.sum() / math.log(2) / n_bytes, rel=1e-6)
        assert result.loss.low < result.loss.value < result.loss.high
    assert (curve.reference, short.change) == (10, None)
    assert long.change.difference == pytest.approx(losses[1].mean() - losses[0].mean(), abs=1e-6)
    # what one stretch is harder than another falls out
    assert long.change.high - long.change.low < long.loss.high - long.loss.low
    assert short.mean_context == pytest.approx(contexts(plan.windows(10), 127).mean())
    assert curve.units == "6 stretches"  # of 30: 3 of the first, 2 and 1
    # by position: every target in one bin
    bins = [(position.first, position.last) for position in curve.positions]
    assert bins == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 30)]
    assert sum(position.tokens for position in curve.positions) == 127
    total = sum(position.tokens * position.loss.value for position in curve.positions)
    assert total / 127 == pytest.approx(long.loss.value, rel=1e-6)
    assert curve.positions[0].tokens == len(plan.windows(30))


def test_documents_are_the_units_where_there_are_enough() -> None:
    spans = stretches(np.asarray([20] * 10), [8], None, side_by_side=True)
    units = Units(spans, 8)
    assert (units.name, units.count) == ("documents", 10)
    assert units.sums(np.ones(200)).tolist() == [20.0] * 10
    few = Units(stretches(np.asarray([20] * 9), [8], None, side_by_side=True), 8)
    assert (few.name, few.count) == ("stretches", 27)
    assert few.sums(np.ones(180)).tolist() == [8.0, 8.0, 4.0] * 9


def test_learned_positions_are_undefined_past_their_capacity() -> None:
    model, text = build(positions="learned", n_ctx=16), text_of(67)
    plan = Plan(text, LengthConfig(context_lengths=(8, 16, 32)), (8, 16, 32))
    curve = read_curve(reader_of(model, capacity=16), plan, name="learned")
    assert [result.loss is None for result in curve.lengths] == [False, False, True]
    undefined = curve.lengths[2]
    assert (undefined.perplexity, undefined.bits_per_byte, undefined.change) == (None, None, None)
    assert undefined.seconds is None
    assert curve.positions[-1].last == 16  # of the longest length that is defined
    beyond = read_curve(reader_of(model, capacity=7), plan, name="learned")
    assert all(result.loss is None for result in beyond.lengths)


def test_a_changed_text_has_no_bytes() -> None:
    text = text_of(67)
    changed = Text(text.name, {}, text.documents, text.token_bytes, exact_bytes=False)
    plan = Plan(changed, LengthConfig(context_lengths=(8,)), (8,))
    result = read_curve(reader_of(build()), plan, name="m").lengths[0]
    assert result.loss is not None
    assert (result.bytes, result.bits_per_byte) == (None, None)


def test_the_control_stands_beside_longer_contexts() -> None:
    config = LengthConfig(context_lengths=(1024, 2048), protocol="fixed_targets")
    assert config.with_control((1024, 2048)) == (512, 1024, 2048)
    assert config.with_control((512, 2048)) == (512, 2048)
    assert config.with_control((128, 2048)) == (128, 2048)
    assert LengthConfig(context_lengths=(1024, 2048)).with_control((1024, 2048)) == (1024, 2048)
    plan = Plan(text_of(3000), config, (1024, 2048))
    assert (plan.lengths, plan.reference) == ((512, 1024, 2048), 512)
    assert {span.scored for span in plan.spans} == {256}
    reader = Reader(lambda tokens, first: torch.ones(len(tokens), tokens.shape[1] - 1 - first), CPU, 2048)
    control, *longer = read_curve(reader, plan, name="m").lengths
    assert control.change is None
    assert all(result.change is not None for result in longer)
    assert all(result.mean_context == result.context_length - 128.5 for result in (control, *longer))

    # a control in the middle is read first all the same
    middle = Plan(text_of(3000), config, (256, 512, 1024))
    assert middle.reference == 512
    changes = [result.change is None for result in read_curve(reader, middle, name="m").lengths]
    assert changes == [False, True, False]


def test_batches_hold_windows_of_about_one_size() -> None:
    windows = [Window(0, 0, size, size, 0) for size in (3, 50, 7, 50, 1, 49)]
    sizes = [[window.size for window in batch] for batch in batches(windows, 100)]
    assert sizes == [[50, 50], [49, 7], [3, 1]]


def test_growth_is_the_power() -> None:
    assert growth([8, 16, 64], [3 * 8**1.5, 3 * 16**1.5, 3 * 64**1.5]) == pytest.approx(1.5)
    assert math.isnan(growth([8], [1.0]))
    assert math.isnan(growth([8, 16, 32], [0.0, 1.0, 2.0]))
    assert math.isnan(growth([8, 16], [1.0, 2.0]))
    assert growth([8, 16], [1.0, 2.0], least=2) == pytest.approx(1.0)
    assert math.isnan(growth([512, 1024, 2048, 4096], [0.90, 0.86, 0.90, 0.88]))
    assert math.isnan(growth([8, 16, 32], [1.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context_lengths": ()}, "evaluation.context_lengths is empty: name some, or leave it out"),
        ({"context_lengths": (0, 8)}, "evaluation.context_lengths: 0 is below 1"),
        ({"context_lengths": (8, 8)}, r"evaluation.context_lengths=\[8, 8\] names one twice: name each once"),
        ({"max_tokens": 0}, "evaluation.max_tokens=0 is below 1"),
        ({"stride": 8}, "evaluation.stride is for evaluation.protocol=sliding, not disjoint: leave it out"),
        ({"targets": 8}, "evaluation.targets is for evaluation.protocol=fixed_targets, not disjoint"),
        (
            {"protocol": "sliding", "stride": 9, "context_lengths": (8, 16)},
            r"evaluation.stride=9 exceeds the shortest context, 8, .*: give at most that",
        ),
        (
            {"protocol": "fixed_targets", "targets": 9, "context_lengths": (16, 32)},
            r"evaluation.targets=9 exceeds half the shortest context, 16, .*: give at most 8",
        ),
        (
            {"protocol": "fixed_targets", "targets": 300, "context_lengths": (1024, 2048)},
            "evaluation.targets=300 exceeds half the shortest context, 512",
        ),
        ({"protocol": "fixed_targets", "documents": "joined"}, "evaluation.documents=joined would let contexts reach"),
        ({"protocol": "fixed_targets", "context_lengths": (1, 16)}, "evaluation.context_lengths: 1 is below 2"),
        ({"protocol": "legacy"}, r"evaluation.protocol=legacy reads files: name them as evaluation.text=\[…\]"),
        ({"text": ()}, "evaluation.text is empty"),
        ({"rotary_scaling": ()}, "evaluation.rotary_scaling"),
        ({"rotary_scaling": ("ntk", "ntk")}, "evaluation.rotary_scaling"),
        ({"alibi_scaling": ()}, "evaluation.alibi_scaling"),
        ({"alibi_scaling": ("ntk", "ntk")}, "evaluation.alibi_scaling"),
        ({"seed": -1}, "evaluation.seed=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        LengthConfig(**given)
    assert "\n" not in str(refused.value)


def test_lengths_follow_from_the_training_context() -> None:
    assert LengthConfig().lengths(100) == (100, 200, 400, 800)
    assert LengthConfig(context_lengths=(64, 16)).lengths(100) == (16, 64)
    with pytest.raises(ConfigError, match=r"does not know its training context: give evaluation.context_lengths"):
        LengthConfig().lengths(None)
    with pytest.raises(ConfigError, match=r"evaluation.stride=200 exceeds the shortest context, 100"):
        LengthConfig(protocol="sliding", stride=200).lengths(100)
    assert LengthConfig().limit == 2**20
    assert LengthConfig(protocol="fixed_targets").limit == 2**16
    assert LengthConfig(protocol="legacy", text="x").limit is None

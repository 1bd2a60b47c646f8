"""What arithmetic predicts of ALiBi's heads, and what a model of equal content has."""

import math

import numpy as np
import pytest
import torch

from gptstar.evaluation.heads.prediction import keeps_subnormals, reach_of
from gptstar.evaluation.heads.sums import Sums, summing
from gptstar.model import GPT, GPTConfig
from gptstar.model.attention import Attention
from gptstar.model.mask import Mask
from gptstar.model.positions import alibi_slopes

CPU = torch.device("cpu")


def equal_content(n_heads: int, **variant: object) -> GPT:
    """A model of one layer in which all queries and keys are zero, so that only positions count."""
    model = GPT(GPTConfig(1, 8, n_heads, 31, d_head=2, **variant)).eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, Attention):
                for parameter in layer.qkv.parameters():
                    parameter.zero_()
    return model


@torch.no_grad()
def sums_of(n_heads: int, length: int, trained_at: int, n_queries: int = 1, **variant: object) -> Sums:
    model = equal_content(n_heads, **variant)
    sums = Sums(1, n_queries, model, trained_at, (1, 2))
    with summing(model, sums, slice(0, 1)):
        model.hidden(torch.randint(31, (1, length)))
    return sums


def test_the_published_counts_of_eight_heads() -> None:
    """2 of 8 heads can't see the far end at 512 tokens, 3 at 1,024, and 7 at 16,384, by 87/m."""
    reaches = [reach_of(slope, keeps_subnormals=False) for slope in alibi_slopes(8)]
    assert [sum(each.zero < length - 1 for each in reaches) for length in (512, 1024, 16_384)] == [2, 3, 7]
    assert [round(each.flushed) for each in reaches[:3]] == [175, 349, 699]


def test_constants_are_the_ends_of_number_formats() -> None:
    reach, kept = (reach_of(1.0, keeps_subnormals=each) for each in (False, True))
    assert (reach.zero, kept.zero) == (reach.flushed, reach.subnormal)
    assert math.exp(-reach.flushed) == pytest.approx(torch.finfo(torch.float32).tiny)
    least = float(np.nextafter(np.float32(0), np.float32(1)))
    for beyond, rounds_to in ((-0.01, least), (0.01, 0.0)):
        assert float(np.float32(math.exp(-reach.subnormal - beyond))) == (least if beyond < 0 else rounds_to)
        as_bfloat16 = torch.tensor(math.exp(-reach.bfloat16 - beyond), dtype=torch.float64).bfloat16()
        assert bool(as_bfloat16 > 0) == (beyond < 0)
        changed = np.float32(1) + np.float32(math.exp(-reach.changes_nothing - beyond))
        assert (changed > 1) == (beyond < 0)


def test_the_probe_tells_what_a_softmax_does() -> None:
    scores = torch.zeros(1, 256)
    scores[:, 1:] = -95.0
    assert keeps_subnormals(CPU) == bool((torch.softmax(scores, -1)[0, 1:] > 0).all())


@pytest.fixture(scope="module")
def measured() -> Sums:
    return sums_of(8, 2500, 512)


def test_equal_content_reaches_as_far_as_predicted(measured: Sums) -> None:
    for head, slope in enumerate(alibi_slopes(8)):
        reach = reach_of(slope, keeps_subnormals=keeps_subnormals(CPU))
        normaliser = -math.log(-math.expm1(-slope))  # ln of the sum of weights, by which each is divided
        least = min(2499, reach.zero - normaliser / slope)
        # the exponential is rounded to a subnormal, and its quotient again
        assert least - 2 <= int(measured.reach[0, head]) <= reach.zero + 1, head
        felt = reach.changes_nothing - normaliser / slope
        if felt < 2499:
            assert abs(int(measured.felt[0, head]) - felt) <= 1, head


def test_equal_content_is_blind_where_predicted(measured: Sums) -> None:
    kept = keeps_subnormals(CPU)
    predicted = [reach_of(slope, keeps_subnormals=kept).zero < 512 for slope in alibi_slopes(8)]
    assert (measured.most_beyond[0] == 0).tolist() == predicted
    assert sum(predicted) == 2
    shares = measured.beyond[0, 0]
    for head, slope in enumerate(alibi_slopes(8)):  # a geometric series, of which 2,500 are so many
        exact = (math.exp(-slope * 512) - math.exp(-slope * 2500)) / (1 - math.exp(-slope * 2500))
        assert shares[head] == pytest.approx(exact, rel=1e-3, abs=1e-38), head


def test_one_of_four_heads_misses_the_first_token_of_1024() -> None:
    sums = sums_of(4, 1024, 64, n_queries=32)
    assert (sums.most_first[0] == 0).tolist() == [True, False, False, False]
    assert (sums.most_beyond[0] == 0).tolist() == [False] * 4


@pytest.mark.parametrize("sinks", [0, 1, 5])
@pytest.mark.parametrize("window", [31, 64, 65, 200])
@pytest.mark.parametrize("kind", ["alibi", "rotary"])
def test_a_window_ends_what_heads_see_but_for_sinks(kind: str, window: int, sinks: int) -> None:
    """Trained at 64 tokens, read at 1,024; a window of 65 is the least that reaches so far."""
    mask = Mask(window, sinks)
    variant = {"positions": kind, "attention_window": window, "attention_sinks": sinks}
    measured = sums_of(4, 1024, 64, n_queries=32, **variant)
    kept = keeps_subnormals(CPU)
    slopes = alibi_slopes(4) if kind == "alibi" else [None] * 4
    reaches = [reach_of(slope, keeps_subnormals=kept, mask=mask) for slope in slopes]
    blind = [each.is_blind(64, 1024, 32) for each in reaches]
    assert blind == (measured.most_beyond[0] == 0).tolist()
    assert [each.misses_first(1024, 32) for each in reaches] == (measured.most_first[0] == 0).tolist()
    expected = [window < 65 and not sinks] * 4
    if kind == "alibi" and sinks and window < 65:
        expected[0] = True  # the steepest slope gives a sink no weight either: 104 / (1/4) is 416 tokens
    assert blind == expected
    if not sinks:
        assert measured.reach[0].tolist() == [window - 1] * 4
        assert [each.farthest for each in reaches] == [window - 1] * 4

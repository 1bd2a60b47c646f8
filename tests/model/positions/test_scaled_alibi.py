"""ALiBi's slopes, made smaller to read further than in training: the published formulas in float64, and its cache."""

import numpy as np
import pytest
import torch

from gptstar.inference.decode import decode
from gptstar.model.attention import causal_attention, scaled_positions
from gptstar.model.kernels.choice import AttentionForm
from gptstar.model.positions import POSITIONS, Alibi, Scaling
from gptstar.model.view import Cache, View
from support import definitions
from support.positions import build, greedily

CPU = torch.device("cpu")


def by_paper(n_heads: int, method: str, factor: float) -> np.ndarray:
    """Slopes by Al-Khateeb et al., 2023, or by keezen/ntk_alibi, where head h = 1 has the steepest: `(head,)`."""
    slopes = np.array(definitions.alibi_slopes(n_heads))
    if method == "interpolated":
        return slopes / factor
    scaled = np.empty(n_heads)
    for h, head in enumerate(np.argsort(-slopes), start=1):
        scaled[head] = slopes[head] * factor ** (-(h - 1) / (n_heads - 1)) if n_heads > 1 else slopes[head]
    return scaled


@pytest.mark.parametrize("n_heads", [1, 2, 4, 7, 8, 12, 16])
@pytest.mark.parametrize("factor", [1.0, 2.0, 7.3, 32.0])
@pytest.mark.parametrize("method", ["interpolated", "ntk"])
def test_slopes_are_those_of_their_sources(method: str, n_heads: int, factor: float) -> None:
    found = Alibi().scaled(Scaling(method, factor, 512)).slopes(n_heads, CPU)
    np.testing.assert_allclose(found.numpy(), by_paper(n_heads, method, factor).astype(np.float32), rtol=1e-7)
    if factor == 1:
        assert torch.equal(found, Alibi().slopes(n_heads, CPU))


def test_ntk_keeps_the_steepest_slope_and_divides_the_flattest() -> None:
    plain, scaled = (each.slopes(12, CPU) for each in (Alibi(), Alibi().scaled(Scaling("ntk", 16.0, 512))))
    steepest, flattest = plain.argmax(), plain.argmin()
    assert (steepest, flattest) == (8, 7)  # the slopes of 12 heads do not fall with their numbers
    assert scaled[steepest] == plain[steepest]
    assert scaled[flattest] == plain[flattest] / 16
    order = plain.argsort()
    assert (scaled[order].diff() > 0).all()


def test_a_single_head_is_the_steepest_which_ntk_keeps() -> None:
    assert torch.equal(Alibi().scaled(Scaling("ntk", 8.0, 64)).slopes(1, CPU), Alibi().slopes(1, CPU))


@pytest.mark.parametrize("form", ["bias", "columns", "products"])
@pytest.mark.parametrize("method", ["interpolated", "ntk"])
def test_attention_is_that_of_its_definition(method: str, form: AttentionForm) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 7, 131, 11)
    found = causal_attention(query, key, value, Alibi().scaled(Scaling(method, 4.0, 32)).slopes(7, CPU), form=form)
    rows = np.arange(131)
    bias = -by_paper(7, method, 4.0)[:, None, None] * (rows[:, None] - rows).clip(0)
    exact = definitions.attention(*(each[0].double().numpy() for each in (query, key, value)), bias, rows)
    np.testing.assert_allclose(found[0].numpy(), exact, atol=1e-5)


def test_a_model_is_scaled_for_a_while() -> None:
    model = build(POSITIONS.parse("alibi"))
    tokens = torch.randint(31, (2, 40))
    plain = model(tokens)
    with scaled_positions(model, Scaling("interpolated", 4.0, 10)):
        assert not torch.allclose(model(tokens), plain, atol=1e-4)
    assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("method", ["interpolated", "ntk"])
def test_cached_decoding_is_that_of_whole_texts(method: str) -> None:
    model, prompt = build(POSITIONS.parse("alibi")), torch.randint(31, (24,)).tolist()
    with torch.no_grad(), scaled_positions(model, Scaling(method, 3.0, 8)):
        assert decode(model, [prompt], 9) == [greedily(model, prompt, 9)]


@torch.no_grad()
def test_keys_in_a_cache_stay_valid_when_the_factor_changes() -> None:
    model, tokens = build(POSITIONS.parse("alibi"), n_layers=1), torch.randint(31, (1, 24))
    at, cache = torch.arange(24)[None], Cache()
    model.hidden(tokens[:, :20], View(at[:, :20], at[:, :20], cache=cache))  # by the slopes as they are
    with scaled_positions(model, Scaling("ntk", 3.0, 8)):
        found = model.hidden(tokens[:, 20:], View(at[:, 20:], at, cache=cache))
        torch.testing.assert_close(found, model.hidden(tokens)[:, 20:], atol=1e-5, rtol=0)


def test_other_kinds_do_not_know_the_methods() -> None:
    for kind, method in (("log_alibi", "ntk"), ("t5", "interpolated"), ("rotary", "interpolated"), ("alibi", "yarn")):
        with pytest.raises(ValueError, match=f"{method} is not a scaling of"):
            POSITIONS.parse(kind).scaled(Scaling(method, 2.0, 64))

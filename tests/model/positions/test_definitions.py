"""Each kind of positions against its paper's definition in float64, in every form that a CPU runs."""

import numpy as np
import pytest
import torch
from torch import nn

from gptstar.model import GPT, GPTConfig
from gptstar.model.kernels import bias as bias_kernel
from gptstar.model.kernels import products
from gptstar.model.kernels.choice import AttentionForm
from gptstar.model.positions import Positions, Sinusoidal
from gptstar.model.view import Cache, View
from support import definitions
from support.layers import (
    D_HEAD,
    D_MODEL,
    WITHIN,
    assert_documents_read_alone,
    deviation,
    expected_of,
    inputs_of,
    layer_of,
)

KINDS = ["alibi", "rotary", "none", "t5", "kerple", "fire", "log_alibi", "p_rope", "fox"]
COLUMNS = 5e-4
"""ALiBi's columns round by about 2^-24 of slope times position (`columns_attention` says so); no CPU takes this form
for float32 unless it is told to."""

by_kind = pytest.mark.parametrize("kind", KINDS)
by_heads = pytest.mark.parametrize("n_heads", [12, 7])


@by_kind
@by_heads
@pytest.mark.parametrize("form", ["products", "bias", "columns"])
@pytest.mark.parametrize("n_positions", [1, 17, pytest.param(301, marks=pytest.mark.slow)])
def test_a_kind_agrees_with_its_paper(
    kind: str, form: AttentionForm, n_heads: int, n_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bias_kernel, "QUERY_BLOCK", 128)
    monkeypatch.setattr(products, "QUERY_BLOCK", 128)
    within = COLUMNS if (kind, form) == ("alibi", "columns") else WITHIN
    assert deviation(kind, form, n_heads, n_positions) < within


@pytest.mark.slow
@by_kind
@by_heads
@pytest.mark.parametrize("form", ["products", "bias", "columns"])
def test_a_kind_agrees_with_its_paper_at_4096_tokens(kind: str, form: AttentionForm, n_heads: int) -> None:
    within = COLUMNS if (kind, form) == ("alibi", "columns") else WITHIN
    assert deviation(kind, form, n_heads, 4096) < within


@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.parametrize("kind", ["t5", pytest.param("alibi", marks=pytest.mark.slow), "fire"])
def test_flex_attention_agrees_with_the_paper(kind: str) -> None:
    assert deviation(kind, "flex", 12, 301) < WITHIN


@pytest.mark.slow
@by_kind
@by_heads
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.parametrize("n_positions", [1, 301, 4096])
def test_flex_attention_agrees_with_every_paper(kind: str, n_heads: int, n_positions: int) -> None:
    assert deviation(kind, "flex", n_heads, n_positions) < WITHIN


@by_kind
@by_heads
def test_documents_are_read_as_if_alone(kind: str, n_heads: int) -> None:
    attention, inputs = layer_of(kind, n_heads), inputs_of(n_heads, 301)
    assert_documents_read_alone(kind, attention, inputs, [130, 1, 170])


@by_kind
@by_heads
@pytest.mark.parametrize("n_positions", [17, pytest.param(4096, marks=pytest.mark.slow)])
def test_tokens_read_one_by_one_agree_with_the_paper(kind: str, n_heads: int, n_positions: int) -> None:
    """The last tokens come by themselves, after a prompt that fills the KV cache."""
    attention, inputs = layer_of(kind, n_heads), inputs_of(n_heads, n_positions)
    cache, at, found = Cache(n_positions), torch.arange(n_positions)[None], []
    n_prompt = n_positions - 8
    with torch.no_grad():
        for start, stop in ((0, n_prompt), *((each, each + 1) for each in range(n_prompt, n_positions))):
            pieces = [each[:, start:stop] for each in inputs]
            mixed = attention.mixed(*pieces, View(at[:, start:stop], at[:, :stop], cache=cache))
            found.append(mixed[0, -1])
    rows = np.arange(n_prompt - 1, n_positions)
    expected = expected_of(kind, attention, inputs, rows)
    torch.testing.assert_close(torch.stack(found).double(), expected, atol=WITHIN, rtol=0)


@pytest.mark.parametrize("kind", ["t5", "kerple", "fire", "fox"])
def test_gradients_are_those_of_the_definition(kind: str) -> None:
    """By differences of the definition, in the direction of each parameter's gradient."""
    attention, inputs = layer_of(kind, 7), inputs_of(7, 67)
    (module,) = attention._of_positions
    if kind == "kerple":  # above its bounds
        nn.init.uniform_(module.a, 0.1, 1)
        nn.init.uniform_(module.p, 0.1, 2)
    weights, rows, step = torch.randn(67, 7 * D_HEAD), np.arange(67), 1e-5
    (attention.mixed(*inputs, None)[0] * weights).sum().backward()
    gradients = {name: parameter.grad.double() for name, parameter in module.named_parameters()}
    module.double()
    for name, gradient in gradients.items():
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                change = sign * step * gradient / gradient.norm()
                module.get_parameter(name).add_(change)
                values.append((expected_of(kind, attention, inputs, rows) * weights).sum().item())
                module.get_parameter(name).sub_(change)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(gradient.norm().item(), rel=1e-3, abs=1e-3), name


def test_a_head_of_kerple_comes_back_from_below_its_bound() -> None:
    attention, inputs = layer_of("kerple", 7), inputs_of(7, 67)
    (module,) = attention._of_positions
    nn.init.constant_(module.p, -0.5)
    attention.mixed(*inputs, None).square().sum().backward()
    assert (module.p.grad != 0).all()
    assert (module.p == -0.5).all(), "the stored value is not clamped"


@pytest.mark.parametrize("n_positions", [1, 17, 4096])
def test_sinusoids_are_the_papers(n_positions: int) -> None:
    x = torch.randn(2, n_positions, D_MODEL)
    expected = x.double() * D_MODEL**0.5 + torch.from_numpy(definitions.sinusoids(n_positions, D_MODEL))
    for at in (None, torch.arange(n_positions)[None]):
        torch.testing.assert_close(Sinusoidal().embed(x, at, None).double(), expected, atol=WITHIN, rtol=0)


def test_the_output_head_of_sinusoidal_positions_is_not_scaled() -> None:
    model = GPT(GPTConfig(1, D_MODEL, 3, 31, positions="sinusoidal", d_head=D_HEAD))
    hidden = torch.randn(1, 5, D_MODEL)
    assert torch.equal(model.logits(hidden), nn.functional.linear(hidden, model.token_embedding.weight))
    tokens = torch.randint(31, (1, 5))
    x = model.positions.embed(model.token_embedding(tokens), None, None)
    assert 0.6 < (x - model.token_embedding(tokens) * D_MODEL**0.5).pow(2).mean().sqrt() < 0.8
    assert isinstance(model.positions, Positions)

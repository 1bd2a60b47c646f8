"""Windows of attention, sinks and SSMax against their definitions in float64, with every kind of positions."""

import copy

import numpy as np
import pytest
import torch

from gptstar.errors import ConfigError
from gptstar.inference.decode import decode
from gptstar.inference.packed import packed
from gptstar.inference.rows import Rows
from gptstar.inference.static_rows import StaticRows
from gptstar.model import GPT, GPTConfig
from gptstar.model.kernels import bias as bias_kernel
from gptstar.model.kernels.choice import AttentionForm
from gptstar.model.mask import Mask
from gptstar.model.positions import POSITIONS
from gptstar.model.softmax_scale import SSMax
from gptstar.model.view import Cache, View
from gptstar.training.optimizers.base import decays
from support.graph import assert_alike, batch, trained
from support.layers import (
    WITHIN,
    assert_branches_are_whole_sequences,
    assert_documents_read_alone,
    deviation,
    expected_of,
    inputs_of,
    layer_of,
)
from support.positions import SIZES, build, greedily

KINDS = ["alibi", "rotary", "none", "t5", "kerple", "fire", "log_alibi", "p_rope", "fox"]
"""All that act within attention."""

WINDOW = {"attention_window": 11}
SINKS = {"attention_window": 11, "attention_sinks": 3}
SSMAX = {"softmax_scale": "ssmax"}
LONG = {"attention_window": 300, "attention_sinks": 4}
COLUMNS = 5e-4
"""Of ALiBi in the form `columns`, which rounds (`columns_attention`)."""

by_kind = pytest.mark.parametrize("kind", KINDS)
by_heads = pytest.mark.parametrize("n_heads", [12, 7])
by_form = pytest.mark.parametrize(
    "form", ["products", *(pytest.param(each, marks=pytest.mark.slow) for each in ("bias", "columns"))]
)
by_modifiers = pytest.mark.parametrize(
    "modifiers",
    [
        pytest.param(each, marks=[pytest.mark.slow] * (each is WINDOW), id="-".join(each).replace("attention_", ""))
        for each in (WINDOW, SINKS, SSMAX, SINKS | SSMAX)
    ],
)
by_two = pytest.mark.parametrize(
    "modifiers",
    [pytest.param(SINKS, marks=pytest.mark.slow, id="window"), pytest.param(SINKS | SSMAX, id="both")],
)


def limit(kind: str, form: AttentionForm, modifiers: dict[str, object]) -> float:
    return COLUMNS if (kind, form) == ("alibi", "columns") and modifiers == SSMAX else WITHIN


@by_kind
@by_modifiers
@by_heads
@by_form
@pytest.mark.parametrize("n_positions", [1, 17, pytest.param(301, marks=pytest.mark.slow)])
def test_modifiers_agree_with_their_definition(
    kind: str,
    modifiers: dict[str, object],
    n_heads: int,
    form: AttentionForm,
    n_positions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bias_kernel, "QUERY_BLOCK", 64 if n_positions > 17 else 4)
    assert deviation(kind, form, n_heads, n_positions, **modifiers) < limit(kind, form, modifiers)


@pytest.mark.slow
@by_kind
@by_heads
@pytest.mark.parametrize(
    ("modifiers", "form"),
    [(SSMAX, "products"), (SSMAX, "bias"), (SSMAX, "columns"), (LONG | SSMAX, "products")],  # a window has one form
    ids=["ssmax-products", "ssmax-bias", "ssmax-columns", "both"],
)
def test_modifiers_agree_with_their_definition_at_4096_tokens(
    kind: str, modifiers: dict[str, object], n_heads: int, form: AttentionForm
) -> None:
    assert deviation(kind, form, n_heads, 4096, **modifiers) < limit(kind, form, modifiers)


@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.slow
@by_kind
@pytest.mark.parametrize("n_positions", [301, 4096])
def test_flex_attention_agrees_with_the_definition(kind: str, n_positions: int) -> None:
    assert deviation(kind, "flex", 7, n_positions, **LONG | SSMAX | {"attention_window": 40}) < WITHIN


@by_kind
@by_modifiers
@by_form
def test_documents_are_read_as_if_alone(kind: str, modifiers: dict[str, object], form: AttentionForm) -> None:
    attention, inputs = layer_of(kind, 7, **modifiers), inputs_of(7, 61)
    attention.form = form
    assert_documents_read_alone(kind, attention, inputs, [30, 1, 30])


@by_kind
@by_modifiers
@by_heads
def test_tokens_read_one_by_one_agree_with_the_definition(
    kind: str, modifiers: dict[str, object], n_heads: int
) -> None:
    assert_read_one_by_one(kind, modifiers, n_heads, 29)


@pytest.mark.slow
@by_kind
def test_tokens_read_one_by_one_after_4096_agree_with_the_definition(kind: str) -> None:
    assert_read_one_by_one(kind, LONG | SSMAX, 12, 4096)


def assert_read_one_by_one(kind: str, modifiers: dict[str, object], n_heads: int, n_positions: int) -> None:
    """The last tokens come by themselves, after a prompt in two pieces that fills the KV cache."""
    attention, inputs = layer_of(kind, n_heads, **modifiers), inputs_of(n_heads, n_positions)
    cache, at, found = Cache(n_positions), torch.arange(n_positions)[None], []
    n_prompt = n_positions - 8
    pieces = ((0, n_prompt - 5), (n_prompt - 5, n_prompt), *((each, each + 1) for each in range(n_prompt, n_positions)))
    with torch.no_grad():
        for start, stop in pieces:
            view = View(at[:, start:stop], at[:, :stop], cache=cache)
            found.append(attention.mixed(*(each[:, start:stop] for each in inputs), view)[0])
    rows = np.arange(n_prompt - 5, n_positions)
    expected = expected_of(kind, attention, inputs, rows)
    torch.testing.assert_close(torch.cat(found[1:]).double(), expected, atol=WITHIN, rtol=0)


@by_kind
@by_two
def test_measured_weights_are_those_that_mix_values(kind: str, modifiers: dict[str, object]) -> None:
    attention, x = layer_of(kind, 7, **modifiers), inputs_of(7, 41)[0]
    with torch.no_grad():
        query, key, value = attention._projections(x, None)
        weights = torch.cat([block for _, block in attention.weights(x)], dim=2)
        found = (weights @ attention._by_head(value)).transpose(1, 2).flatten(2)
        expected = attention.mixed(x, query, key, value, None)
    torch.testing.assert_close(found, expected, atol=WITHIN, rtol=0)


def model_of(kind: str, **changes: object) -> GPT:
    return build(POSITIONS.parse(kind), **changes)


@by_kind
@by_two
def test_branches_that_share_a_beginning_have_the_logits_of_whole_sequences(
    kind: str, modifiers: dict[str, object]
) -> None:
    model = model_of(kind, **modifiers | {"attention_window": 4})
    nodes, together = assert_branches_are_whole_sequences(model)
    with torch.inference_mode():
        last = model.hidden(nodes[None, :9], None, torch.tensor([[8, 2]]))  # of a text without a view
        torch.testing.assert_close(model.logits(last)[0], together[[8, 2]], atol=1e-5, rtol=1e-5)


@by_kind
@by_two
def test_prompts_of_several_lengths_are_continued_as_by_whole_forwards(
    kind: str, modifiers: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind, **modifiers | {"attention_window": 4, "attention_sinks": 1})
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(3)  # else it repeats one token for ever
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]]
    with torch.inference_mode():
        expected = [greedily(model, prompt, 9) for prompt in prompts]
        for rows in (Rows, StaticRows):
            monkeypatch.setattr("gptstar.inference.decode.Rows", rows)
            for form in (model, packed(copy.deepcopy(model))):
                assert decode(form, prompts, 9) == expected


@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.parametrize(
    ("kind", "form", "within"),
    [
        ("alibi", "flex", True),
        *(
            pytest.param(kind, form, within, marks=pytest.mark.slow)
            for kind in KINDS
            for form in ("flex", "auto")
            for within in (True, False)
        ),
    ],
)
def test_the_graph_learns_what_the_hand_written_forms_learn(
    kind: str, form: AttentionForm, within: bool, trains_flex_attention: None
) -> None:
    model = model_of(kind, n_vocab=211, **SINKS | SSMAX | {"attention_window": 6})
    tokens, targets, documents = batch()
    arguments = (tokens, targets, documents if within else None)
    expected = trained(model, model, *arguments)
    model.use(attention=form, activation_checkpointing=form == "flex")
    graph = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    assert_alike(trained(graph, model, *arguments), expected, int((targets >= 0).sum()))
    torch._dynamo.reset()


@by_two
@pytest.mark.parametrize("within", [True, False])
def test_gradients_are_those_of_differences(modifiers: dict[str, object], within: bool) -> None:
    """In float64, of s and of the inputs, in the direction of each gradient."""
    attention = layer_of("none", 7, **modifiers).double()
    inputs = [each.double().requires_grad_() for each in inputs_of(7, 41)]
    documents = torch.repeat_interleave(torch.tensor([22, 19]))[None] if within else None
    weights = torch.randn(1, 41, 56, dtype=torch.float64)

    def total() -> torch.Tensor:
        return (attention.mixed(*inputs, documents) * weights).sum()

    of_scale = [] if attention.softmax_scale is None else [attention.softmax_scale.s]
    learned = [*inputs[1:], *of_scale]
    for each, gradient in zip(learned, torch.autograd.grad(total(), learned), strict=True):
        values, change = [], 1e-5 * gradient / gradient.norm()
        for sign in (1, -1):
            with torch.no_grad():
                each.add_(sign * change)
                values.append(total().item())
                each.sub_(sign * change)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient.norm().item(), rel=1e-6)


@pytest.mark.parametrize("kind", POSITIONS.names()[:11])
def test_a_trained_model_is_read_with_attention_cut(kind: str) -> None:
    capacity = {"n_ctx": 29} if kind == "learned" else {}
    config = GPTConfig(**SIZES, positions=kind, **capacity)
    torch.manual_seed(1)
    model, cut = GPT(config).eval(), GPT(GPTConfig(**SIZES, positions=kind, **capacity, **SINKS)).eval()
    cut.load_state_dict(model.state_dict())
    tokens = torch.randint(31, (2, 29))
    with torch.inference_mode():
        full = model(tokens)
        model.use(attention_window=11, attention_sinks=3)
        assert torch.equal(model(tokens), cut(tokens))
        assert not torch.allclose(model(tokens), full, atol=1e-5)
        torch.testing.assert_close(model(tokens)[:, :14], full[:, :14], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed(copy.deepcopy(model))(tokens), model(tokens), atol=1e-5, rtol=1e-5)
        assert model.config == config
        assert (model.config.attention_window, model.config.mask) == (None, Mask())
        model.use()
        assert torch.equal(model(tokens), full)
        cut.use(attention_window=29)
        torch.testing.assert_close(cut(tokens), full, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_window": 0}, "attention_window=0 is below 1"),
        ({"attention_sinks": 4}, "attention_sinks=4 has no effect without a window: give attention_window"),
        ({"attention_window": 3, "attention_sinks": -1}, "attention_sinks=-1 is not 0 or above"),
    ],
)
def test_what_makes_no_mask_is_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        GPT(GPTConfig(**SIZES)).use(**given)
    with pytest.raises(ConfigError, match=f"^model.{message}"):
        GPTConfig(**SIZES, **given)


def test_a_softmax_scale_is_a_name() -> None:
    with pytest.raises(ConfigError, match=r"model.softmax_scale=maximum is not known: there are none, ssmax"):
        GPTConfig(**SIZES, softmax_scale="maximum")


def test_parameters_and_operations_are_counted_and_s_does_not_decay() -> None:
    plain, config = GPTConfig(**SIZES), GPTConfig(**SIZES, **SINKS, softmax_scale=SSMax(64))
    model = GPT(config)
    assert config.n_params - plain.n_params == 2 * 3
    assert config.n_params == sum(parameter.numel() for parameter in model.parameters())
    of_s = {name: (parameter, decay) for name, parameter, decay in decays(model, final_norm=True) if "scale" in name}
    assert of_s.keys() == {f"blocks.{layer}.attention.softmax_scale.s" for layer in (0, 1)}
    for parameter, decay in of_s.values():
        assert not decay
        torch.testing.assert_close(parameter, torch.full((3,), 1 / np.log(64), dtype=torch.float32))
    assert config.training_flops(14) == plain.training_flops(14)
    assert config.training_flops(512) == plain.training_flops(14)  # 11 keys of the window, and 3 sinks


def test_ssmax_starts_with_the_softmaxs_weights_at_the_training_context() -> None:
    torch.manual_seed(4)
    plain = GPT(GPTConfig(**SIZES))
    torch.manual_seed(4)
    model, tokens = GPT(GPTConfig(**SIZES, softmax_scale=SSMax(23))), torch.randint(31, (2, 23))
    same = {name: parameter for name, parameter in model.state_dict().items() if "softmax_scale" not in name}
    for name, parameter in plain.state_dict().items():
        assert torch.equal(parameter, same[name])  # drawn as without it
    x = 20 * torch.randn(2, 23, 30)
    found, expected = (each.blocks[0].attention(x) for each in (model, plain))
    torch.testing.assert_close(found[:, -1], expected[:, -1], atol=1e-6, rtol=0)
    assert not torch.allclose(found[:, 11], expected[:, 11], atol=1e-3)
    assert model(tokens).isfinite().all()


def test_a_mask_that_hides_nothing_computes_bitwise_what_no_mask_computes() -> None:
    model, tokens = model_of("alibi"), torch.randint(31, (2, 14))
    expected = model(tokens)
    model.use(attention_window=11, attention_sinks=3)
    assert torch.equal(model(tokens), expected)

"""Packed and eight-bit weights: how far they may be from the model that they were made from, and what they refuse."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from gptstar.checkpoint.legacy import read_legacy
from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.scoring import Scorable, Scorer
from gptstar.evaluation.tasks.team import Team
from gptstar.evaluation.tasks.worker import Worker
from gptstar.inference.decode import decode
from gptstar.inference.int8 import Int8Linear, quantised
from gptstar.inference.packed import JoinedLinear, PackedGPT, PackedLinear, packed
from gptstar.model import GPT, GPTConfig, attention
from gptstar.model.attention import scaled_positions
from gptstar.model.positions import Scaling

has_int8 = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no VNNI")
has_bf16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
KINDS = [
    {"positions": "alibi"},
    {"positions": "learned", "n_ctx": 41, "residual": "sequential"},
    {"positions": "rotary"},
    {"positions": "none"},
]
by_packing = pytest.mark.parametrize(
    "packing", [packed, lambda model: PackedGPT(model, JoinedLinear), pytest.param(quantised, marks=has_int8)]
)
by_positions = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["positions"])


def build(kind):
    torch.manual_seed(3)
    model = GPT(GPTConfig(**{"n_layers": 3, "d_model": 66, "n_heads": 3, "n_vocab": 131, "d_head": 22} | kind)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def matrices(kind):
    """Of three blocks and the head: a parallel block reads its input by one, but for the last."""
    return 3 * 4 + 1 - (0 if kind.get("residual") == "sequential" else 2)


@has_int8
@pytest.mark.parametrize("shape", [(1, 67), (5, 67), (2, 3, 67), (2, 0, 67)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_errs_by_no_more_than_its_steps_allow(shape, has_bias):
    torch.manual_seed(0)
    weight = torch.randn(43, 67) * torch.logspace(-3, 1, 43)[:, None]  # each output has a scale of its own
    bias = torch.randn(43) if has_bias else None
    x = torch.randn(shape) * torch.logspace(-4, 3, shape[-2])[:, None]  # and so has each row
    found, exact = Int8Linear(weight, bias)(x), linear(x, weight, bias)
    assert found.shape == exact.shape
    assert found.dtype is torch.float32
    # half a step of each weight times the activations, half a step of each activation times the weights, and both
    w_step, x_step = weight.abs().amax(1) / 127, x.abs().amax(-1, keepdim=True) / 127
    allowed = x.abs().sum(-1, keepdim=True) * w_step / 2 + weight.abs().sum(1) * x_step / 2 + 67 * x_step * w_step / 4
    assert ((found - exact).abs() <= 1.001 * allowed + 1e-6).all()
    if exact.numel():
        assert (found - exact).abs().max() > 1e-6 * exact.abs().max()  # it does round
        typical = (found - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert typical.max() < 0.04


@has_int8
def test_activations_are_rounded_to_the_nearest_step():
    layer, x = Int8Linear(torch.eye(9), None), torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    error = (layer(x) - x) / (x.abs().amax(1, keepdim=True) / 127)
    assert 0.45 < error.abs().max() < 0.501


@has_int8
def test_a_row_of_integers_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    layer, x = (
        Int8Linear(torch.randn(43, 67), torch.randn(43)),
        torch.randn(5, 67) * torch.tensor([[1e-3], [1], [50], [1], [1]]),
    )
    torch.testing.assert_close(torch.cat([layer(row[None]) for row in x]), layer(x), atol=0, rtol=1e-6)
    assert torch.equal(layer(torch.zeros(2, 67)), linear(torch.zeros(2, 67), torch.zeros(43, 67), layer._bias))
    assert layer(x.bfloat16()).dtype is torch.bfloat16


@has_int8
@by_positions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_logits_are_near_those_of_the_model_and_not_equal(kind, dtype):
    model, tokens = build(kind), torch.randint(131, (3, 37), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = model(tokens)
        found = quantised(model.to(dtype))(tokens)
        assert found.dtype is dtype
        error = (found.float() - exact).std() / exact.std()
    assert 0.001 < error < 0.03


@has_int8
@by_positions
def test_int8_decodes_what_it_reads(kind):
    model = quantised(build(kind))
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9, 7]]
    for prompt, continuation in zip(prompts, decode(model, prompts, 9), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + continuation[:-1]]))[0, len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == continuation


@has_int8
@by_positions
def test_the_head_is_in_eight_bits_too(kind):
    model = quantised(build(kind))
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == matrices(kind)
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    hidden = torch.randn(2, 66)
    assert not torch.equal(model.logits(hidden), linear(hidden, model.token_embedding.weight))


@has_int8
def test_scores_of_int8_are_near_those_of_the_model():
    draw = torch.Generator().manual_seed(5)
    tokens = lambda n: torch.randint(131, (n,), generator=draw).tolist()  # noqa: E731
    asked = [Scorable.cut(tokens(9 + n), tokens(1 + n % 3), 53) for n in range(12)]
    model = build(KINDS[0])

    def scores(model):
        found = Team(Worker(Scorer(model), tokenizer=None)).all_results(asked)  # type: ignore[arg-type]
        return torch.tensor([score.log_likelihood for score in found])

    differences = (scores(quantised(model)) - scores(model)).abs()
    assert 0 < differences.max() < 0.05
    torch.testing.assert_close(scores(packed(model)), scores(model), atol=1e-5, rtol=0)


@by_positions
@pytest.mark.parametrize("layer", [PackedLinear, JoinedLinear])
def test_packing_changes_nothing(kind, layer):
    model, tokens = build(kind), torch.randint(131, (3, 37))
    twin = PackedGPT(model, layer) if layer is JoinedLinear else packed(model)
    assert isinstance(twin, PackedGPT)
    assert sum(isinstance(module, layer) for module in twin.modules()) == matrices(kind)
    assert twin.token_embedding.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    selected = torch.tensor([[36, 4], [2, 2], [0, 17]])
    with torch.inference_mode():
        torch.testing.assert_close(twin(tokens), model(tokens), atol=1e-5, rtol=1e-5)
        found, exact = (m.hidden(tokens, selected=selected) for m in (twin, model))
        torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)
    assert decode(twin, tokens.tolist(), 4) == decode(model, tokens.tolist(), 4)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("bias", [torch.randn(43), None])
def test_a_compiled_layer_adds_its_bias_by_itself(bias):
    layer, x, graphs = JoinedLinear(torch.randn(43, 67), bias), torch.randn(1, 1, 67), []
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(compiled(x), linear(x, layer._weight, bias))
    torch.testing.assert_close(layer(x), linear(x, layer._weight, bias))
    (product,) = (node for node in graphs[0].graph.nodes if "linear" in str(node.target))
    assert len(product.args) == 2 or product.args[2] is None


@has_bf16
def test_packing_bfloat16_rounds_as_bfloat16_does():
    model, tokens = build(KINDS[0]), torch.randint(131, (3, 37))
    with torch.inference_mode():
        exact, half = model(tokens), model.bfloat16()(tokens).float()
        found = packed(model)(tokens)
        assert found.dtype is torch.bfloat16
        assert (found.float() - exact).norm() < 1.5 * (half - exact).norm()
    assert isinstance(packed(model), PackedGPT)


def test_what_can_not_be_packed_stays():
    model = build(KINDS[0]).double()
    assert packed(model) is model


def test_refusals(monkeypatch):
    model = build(KINDS[0])
    twin = packed(model)
    with pytest.raises(ConfigError, match="returns logits, not losses"):
        twin(torch.tensor([[1]]), torch.tensor([[2]]))
    with pytest.raises(ConfigError, match="move or cast the original model, then pack it"):
        twin.bfloat16()
    with pytest.raises(ConfigError, match="the model is on meta: move it, or use bfloat16"):
        quantised(build(KINDS[0]).to("meta"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"lacks the instructions for int8 weights \(VNNI\)"):
        quantised(model)


@has_int8
def test_perplexity_of_an_imported_model_hardly_moves(shared):
    model = read_legacy(shared / "legacy/alibi-parallel-0.pth.tar").build()
    expected = torch.load(shared / "legacy/alibi-parallel-0.expected.pt", weights_only=True)
    tokens = expected["tokens"]
    with torch.inference_mode():
        losses = [
            cross_entropy(m(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()) for m in (model, quantised(model))
        ]
    assert 0 < abs(losses[1] - losses[0]) < 0.003


@by_positions
def test_packed_models_keep_to_documents(kind):
    model, tokens = build(kind), torch.randint(131, (2, 9))
    documents = torch.tensor([[0] * 4 + [1] * 5] * 2)
    with torch.inference_mode():
        found, expected = packed(model)(tokens, None, documents), model(tokens, documents=documents)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@by_packing
@by_positions
def test_the_chosen_form_of_attention_is_packed_too(packing, kind, monkeypatch):
    model, tokens, taken = build(kind), torch.randint(131, (2, 9)), []
    model.use(attention="bias")
    model.blocks[1].attention.form = "columns"  # each layer keeps its own
    plain = attention.causal_attention
    monkeypatch.setattr(attention, "causal_attention", lambda *a: taken.append(a[5]) or plain(*a))
    with torch.inference_mode():
        packing(model)(tokens)
    assert taken == ["bias", "columns", "bias"]


@by_packing
@pytest.mark.parametrize("residual", ["parallel", "sequential"])
def test_scaled_rotary_positions_are_packed_too(packing, residual):
    model = build({"positions": "rotary", "residual": residual})
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.mul_(20)  # so that positions matter more than rounding does
    tokens = torch.randint(131, (2, 41), generator=torch.Generator().manual_seed(1))
    plain = packing(model)
    with torch.inference_mode():
        unscaled = plain(tokens)
        with scaled_positions(model, Scaling("yarn", 4.0, 10)):
            exact, found = model(tokens), packing(model)(tokens)
            assert torch.equal(plain(tokens), unscaled)  # what was packed before stays as it was
    scale = exact.std()
    assert (found - exact).std() < (0.15 if packing is quantised else 1e-5) * scale
    assert (unscaled - exact).std() > 0.3 * scale

"""Every form of attention against its definition, forward and backward, and which of them is taken where."""

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptstar.model import GPT, GPTConfig
from gptstar.model.attention import causal_attention
from gptstar.model.kernels import bias, choice, products
from gptstar.model.kernels.bias import linear_bias
from gptstar.model.kernels.choice import AttentionForm, attention_form
from gptstar.model.kernels.columns import columns_attention, key_columns, query_columns
from gptstar.model.positions import alibi_slopes
from support.attention import reference_attention

FORMS: list[AttentionForm] = ["bias", "columns", "products"]


def expected_of(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None) -> Tensor:
    """The definition, in the precision of what it is given."""
    n_heads, n_positions = query.shape[1:3]
    by_head = torch.zeros(n_heads) if slopes is None else slopes
    return reference_attention(query, key, value, linear_bias(by_head, range(n_positions), range(n_positions)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_heads", [8, 3, None])
@pytest.mark.parametrize("n_positions", [1, 13, 37])
def test_a_form_and_its_gradients_agree_with_the_definition(
    form: AttentionForm, n_heads: int | None, n_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bias, "QUERY_BLOCK", 16)
    monkeypatch.setattr(products, "QUERY_BLOCK", 16)
    torch.manual_seed(0)
    slopes = None if n_heads is None else torch.tensor(alibi_slopes(n_heads))
    shape = (2, n_heads or 5, n_positions, 7)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    outgoing = torch.randn(shape)
    found = causal_attention(*inputs, slopes, form=form)
    gradients = torch.autograd.grad(found, inputs, outgoing)
    expected = expected_of(*inputs, slopes)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for mine, its in zip(gradients, torch.autograd.grad(expected, inputs, outgoing), strict=True):
        torch.testing.assert_close(mine, its, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kept_up_to", [2048, 0])
@pytest.mark.parametrize("has_slopes", [True, False])
@pytest.mark.parametrize("has_documents", [True, False])
def test_products_of_float64_stay_float64(
    kept_up_to: int, has_slopes: bool, has_documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "QUERY_BLOCK", 4)
    monkeypatch.setattr(products, "KEPT_UP_TO", kept_up_to)
    torch.manual_seed(0)
    shape, n_positions = (2, 3, 11, 5), 11
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    slopes = torch.tensor([0.7, 0.1, 0.01]) if has_slopes else None  # whose products with distances float32 rounds
    documents = (torch.arange(n_positions) > torch.tensor([[4], [6]])).long() if has_documents else None
    distances = (torch.arange(n_positions)[:, None] - torch.arange(n_positions)).double()  # (query, key)
    mask = -(torch.zeros(3) if slopes is None else slopes).double()[:, None, None] * distances
    mask = mask.masked_fill(distances < 0, -torch.inf)[None]  # (1, head, query, key)
    if documents is not None:
        mask = mask.masked_fill((documents[:, :, None] != documents[:, None])[:, None], -torch.inf)
    query, key, value = inputs
    expected = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(5) + mask, dim=-1) @ value
    found = products.products_attention(*inputs, slopes, documents)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    outgoing = torch.randn(shape, dtype=torch.float64)
    of_expected = torch.autograd.grad(expected, inputs, outgoing)
    for mine, its in zip(torch.autograd.grad(found, inputs, outgoing), of_expected, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-13, rtol=0)
    attend = lambda *each: products.products_attention(*each, slopes, documents)  # noqa: E731
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def test_products_keep_nothing_where_no_gradients_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "QUERY_BLOCK", 4)
    alive, made = [], products._weights

    def weights(*each: object) -> Tensor:
        alive.append(sum(before() is not None for before in blocks))
        block = made(*each)  # type: ignore[arg-type]
        blocks.append(weakref.ref(block))
        return block

    blocks: list[weakref.ref[Tensor]] = []
    monkeypatch.setattr(products, "_weights", weights)
    query = torch.randn(1, 2, 16, 5, requires_grad=True)
    with torch.no_grad():
        products.products_attention(query, query, query)
    assert alive == [0, 1, 1, 1]  # the one before has a name yet


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_a_form_errs_no_more_than_bfloat16_does(form: AttentionForm) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 12, 700, 64).bfloat16().requires_grad_() for _ in range(3)]
    slopes, outgoing = torch.tensor(alibi_slopes(12)), torch.randn(1, 12, 700, 64)
    found = causal_attention(*inputs, slopes, form=form)
    assert found.dtype == torch.bfloat16
    wide = [part.detach().float().requires_grad_() for part in inputs]
    expected = expected_of(*wide, slopes)
    assert (found.float() - expected).abs().max() < 0.03  # a bfloat16 between 2 and 4 stands 0.016 from the next
    assert (found.float() - expected).pow(2).mean().sqrt() < 3e-3
    gradients = torch.autograd.grad(found, inputs, outgoing.bfloat16())
    for mine, its in zip(gradients, torch.autograd.grad(expected, wide, outgoing), strict=True):
        assert (mine.float() - its).norm() < 0.012 * its.norm()


def far_away(form: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], *, dtype: torch.dtype) -> float:
    """The largest error of the last queries of 32,768 under 12 heads, as a share of the largest output."""
    torch.manual_seed(0)
    n_positions, n_heads, last = 32_768, 12, 64
    slopes = torch.tensor(alibi_slopes(n_heads))
    query, key, value = (torch.randn(1, n_heads, n_positions, 8).to(dtype) for _ in range(3))
    with torch.no_grad():
        found = form(query, key, value, slopes)[:, :, -last:].float()
        tail = range(n_positions - last, n_positions)
        expected = reference_attention(query[:, :, -last:], key, value, linear_bias(slopes, tail, range(n_positions)))
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.slow
def test_at_12_heads_and_32768_tokens_the_bias_is_exact_and_columns_round_as_they_say() -> None:
    assert far_away(lambda *inputs: causal_attention(*inputs, form="bias"), dtype=torch.float32) < 1e-5
    assert far_away(products.products_attention, dtype=torch.float32) < 1e-4
    assert far_away(products.products_attention, dtype=torch.bfloat16) < 1.5e-2
    assert far_away(columns_attention, dtype=torch.float32) < 5e-3
    assert far_away(columns_attention, dtype=torch.bfloat16) < 1.5e-2


@pytest.mark.parametrize("n_heads", [8, 12])
@pytest.mark.parametrize("d_head", [64, 128, 192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_hold_the_bias_at_every_position(n_heads: int, d_head: int, dtype: torch.dtype) -> None:
    slopes = torch.tensor(alibi_slopes(n_heads))
    of_query = query_columns(slopes, d_head, dtype).double() / math.sqrt(d_head)
    held = of_query @ key_columns(32_768, dtype, slopes.device).double().T  # (head, key)
    exact = slopes.double()[:, None] * torch.arange(32_768)
    assert (held - exact).abs().max() < 32_768 * slopes.max() * 2.0**-22  # one bfloat16 a slope would err by 2^-9


def test_columns_are_not_counted_beyond_what_their_digits_hold() -> None:
    digits = key_columns(65_536, torch.bfloat16, torch.device("cpu"))[:, :2].double().sum(dim=-1)
    assert torch.equal(digits, torch.arange(65_536).double())
    digits = key_columns(65_536 + 300, torch.bfloat16, torch.device("cpu"))[:, :2].double().sum(dim=-1)
    assert not torch.equal(digits, torch.arange(65_536 + 300).double())


@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.parametrize("d_head", [16, 192])
def test_flex_attention_reads_as_the_definition(d_head: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 12, 150, d_head)
    slopes = torch.tensor(alibi_slopes(12))
    with torch.no_grad():
        found = causal_attention(query, key, value, slopes, form="flex")
    torch.testing.assert_close(found, expected_of(query, key, value, slopes), atol=1e-5, rtol=1e-4)


def test_the_form_taken_follows_device_type_dropout_and_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    single, half = torch.float32, torch.bfloat16
    assert attention_form(cpu, single, 64) == attention_form(cpu, half, 64) == "products"
    assert attention_form(cpu, single, 64, dropout=0.1) == "bias"  # as exact as its type
    assert attention_form(cpu, half, 64, dropout=0.1) == "columns"
    assert attention_form(gpu, half, 64) == "columns"  # FlexAttention outside a graph would be compiled anew
    monkeypatch.setattr(choice.torch.compiler, "is_compiling", lambda: True)
    assert attention_form(cpu, single, 64) == attention_form(gpu, single, 64) == "bias"
    assert attention_form(gpu, half, 64) == "flex"
    assert attention_form(gpu, half, 8) == "columns"  # FlexAttention takes no narrower heads than 16
    assert attention_form(gpu, half, 64, dropout=0.1) == "columns"


def test_alibi_stays_exact_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.ones(1, 1, 700, 1).bfloat16()
    key = torch.full((1, 1, 700, 1), 0.0).bfloat16()
    value = torch.arange(700.0).view(1, 1, 700, 1) % 2  # which of two neighbours is attended to
    slopes = torch.tensor([1.0])
    expected = reference_attention(query, key, value, linear_bias(slopes, range(700), range(700)))
    seen = []
    fused = bias.scaled_dot_product_attention
    monkeypatch.setattr(
        bias, "scaled_dot_product_attention", lambda *a, **k: seen.append(k["attn_mask"]) or fused(*a, **k)
    )
    with torch.autocast("cpu", torch.bfloat16):
        for form in FORMS:
            found = causal_attention(query, key, value.bfloat16(), slopes, form=form)
            torch.testing.assert_close(found.float(), expected, atol=0.01, rtol=0)
    assert seen[0].dtype == torch.float32
    assert seen[0][0, 0, 699, 2] == -697.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation_checkpointing", [True, False])
def test_a_model_learns_the_same_by_any_form(form: AttentionForm, activation_checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layers=3, d_model=24, n_heads=3, n_vocab=101))
    tokens = torch.randint(101, (2, 43))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:], reduction="sum").backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    model.use(attention="bias")
    expected = gradients()
    model.use(attention=form, activation_checkpointing=activation_checkpointing)
    for mine, its in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, its, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_flex_attention_stays_compiled_within_a_compiled_model(recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layers=2, d_model=64, n_heads=3, d_head=16, n_vocab=101)).eval()
    tokens = torch.randint(101, (2, 150))
    with torch.no_grad():
        expected = model(tokens)
        model.use(attention="flex")
        model.compile()
        torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-4)
    # PyTorch warns where it makes all scores after all.
    assert not [warning for warning in recwarn if "flex_attention" in str(warning.message)]

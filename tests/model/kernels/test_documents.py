"""Attention that stays within documents: each is read as if it were alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from gptstar.model import GPT, GPTConfig
from gptstar.model.kernels import documents as documents_kernel
from gptstar.model.kernels import products
from gptstar.model.kernels.bias import linear_bias
from gptstar.model.kernels.choice import AttentionForm
from gptstar.model.kernels.documents import attention_within_documents
from gptstar.model.kernels.products import products_attention
from gptstar.model.positions import alibi_slopes
from support.attention import reference_attention

LENGTHS = [13, 1, 23, 2]
"""Of the documents of a packed window."""
NUMBERS = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))[None]
BOUNDS = list(pairwise(np.cumsum([0, *LENGTHS]).tolist()))


def by_products(query: Tensor, key: Tensor, value: Tensor, documents: Tensor, slopes: Tensor | None) -> Tensor:
    return products_attention(query, key, value, slopes, documents)


def model_with(residual: str, positions: str) -> GPT:
    torch.manual_seed(0)
    n_ctx = 53 if positions == "learned" else None
    return GPT(GPTConfig(2, 44, 11, 97, residual=residual, positions=positions, n_ctx=n_ctx)).eval()


@pytest.mark.parametrize("form", ["products", "bias"])
@pytest.mark.parametrize("query_block", [16, 1024])
@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("positions", ["alibi", "rotary", "none", "learned"])
def test_a_packed_document_is_read_as_if_it_were_alone(
    positions: str, residual: str, query_block: int, form: AttentionForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_kernel, "QUERY_BLOCK", query_block)
    monkeypatch.setattr(products, "QUERY_BLOCK", query_block)
    model = model_with(residual, positions)
    model.use(attention=form)
    tokens = torch.randint(97, (2, sum(LENGTHS)))
    numbers = torch.cat((NUMBERS, torch.zeros_like(NUMBERS)))  # the second window holds one document
    packed, across = model(tokens, documents=numbers), model(tokens)
    torch.testing.assert_close(packed[1], across[1], atol=1e-5, rtol=0)
    assert not torch.allclose(packed[0, 14:], across[0, 14:], atol=1e-3)
    for start, stop in BOUNDS:
        alone = model_with(residual, positions)
        alone.use(attention=form)
        if positions == "learned":  # its positions go on counting
            alone.position_embedding.weight.data = alone.position_embedding.weight.data.roll(-start, 0)
        torch.testing.assert_close(packed[:1, start:stop], alone(tokens[:1, start:stop]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("alibi", [True, False])
@pytest.mark.parametrize("n_positions", [1, 37, 1301])
def test_fused_attention_within_documents_agrees_with_the_reference(alibi: bool, n_positions: int) -> None:
    """1,301 is beyond a block of queries and any kernel's tile: whole tiles of keys are of other documents."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, n_positions, 7)
    documents = (torch.rand(2, n_positions) < 0.005).long().cumsum(dim=1)
    slopes = torch.tensor(alibi_slopes(3)) if alibi else None
    bias = linear_bias(slopes if alibi else torch.zeros(3), range(n_positions), range(n_positions))
    others = (documents[:, :, None] != documents[:, None])[:, None]
    expected = reference_attention(query, key, value, bias.masked_fill(others, -torch.inf))
    for attention in (attention_within_documents, by_products):
        found = attention(query, key, value, documents, slopes)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_distances_stay_exact_under_autocast() -> None:
    n_positions = 701
    query, key = torch.ones(1, 1, n_positions, 1).bfloat16(), torch.zeros(1, 1, n_positions, 1).bfloat16()
    value = (torch.arange(float(n_positions)) % 2).view(1, 1, n_positions, 1).bfloat16()  # which of two neighbours
    documents, slopes = torch.zeros(1, n_positions, dtype=torch.int64), torch.tensor([1.0])
    with torch.autocast("cpu", torch.bfloat16):
        found = [attend(query, key, value, documents, slopes) for attend in (attention_within_documents, by_products)]
    expected = reference_attention(query, key, value, linear_bias(slopes, range(n_positions), range(n_positions)))
    for each in found:
        assert each.dtype == torch.bfloat16
        torch.testing.assert_close(each.float(), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("positions", ["alibi", "rotary", "none", "learned"])
def test_no_gradient_flows_across_documents(positions: str) -> None:
    model = model_with("parallel", positions)
    seen = []
    model.token_embedding.register_forward_hook(lambda *hook: (hook[2].retain_grad(), seen.append(hook[2]))[0])
    tokens = torch.randint(97, (1, sum(LENGTHS)))
    model(tokens, documents=NUMBERS)[:, 14:37].square().sum().backward()  # of the third document
    per_position = seen[0].grad.abs().sum(dim=-1)[0]
    assert (per_position[14:37] > 0).all()
    assert per_position[:14].count_nonzero() == per_position[37:].count_nonzero() == 0

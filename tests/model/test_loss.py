"""The loss of the output head: per token, and summed with its gradient from the same pass."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.flop_counter import FlopCounterMode

from gptstar.model import GPT, GPTConfig
from gptstar.model.kernels import summed_loss as by_hand
from gptstar.model.kernels.summed_loss import summed_loss
from gptstar.model.loss import token_losses

N_VOCAB, D_MODEL = 211, 13


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, embedding and targets; some positions have no target."""
    torch.manual_seed(0)
    hidden = torch.randn(3, 17, D_MODEL, dtype=dtype, requires_grad=True)
    weight = torch.randn(N_VOCAB, D_MODEL, dtype=dtype, requires_grad=True)
    targets = torch.randint(N_VOCAB, (3, 17))
    targets[0, :4] = targets[2, 16] = -1
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [2**26, 20 * 256, 1])
def test_losses_and_their_gradients_agree_with_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_hand, "LOGITS_AT_ONCE", chunk)
    monkeypatch.setattr(by_hand, "VOCABULARY_BLOCK", 64)
    hidden, weight, targets = inputs()
    logits = linear(hidden, weight).flatten(0, 1)
    expected = cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=-1).view_as(targets)
    of_expected = torch.autograd.grad(expected.sum() / 51, (hidden, weight))
    by_token, total = token_losses(hidden, weight, targets, chunk), summed_loss(hidden, weight, targets)
    torch.testing.assert_close(by_token, expected)
    torch.testing.assert_close(total, expected.sum())
    for found in (by_token.sum(), total):
        for mine, its in zip(torch.autograd.grad(found / 51, (hidden, weight)), of_expected, strict=True):
            torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_the_sum_is_its_slope() -> None:
    hidden, weight, targets = inputs(torch.float64)
    total = summed_loss(hidden, weight, targets)
    assert total.dtype == torch.float32
    (of_hidden,) = torch.autograd.grad(total, hidden)
    step = torch.zeros_like(hidden)
    step[1, 5, 3] = 1e-3
    with torch.no_grad():
        up, down = (
            cross_entropy(linear(hidden + sign * step, weight).flatten(0, 1), targets.flatten(), ignore_index=-1)
            for sign in (1, -1)
        )
    counted = int((targets >= 0).sum())
    torch.testing.assert_close(of_hidden[1, 5, 3], (up - down) * counted / 2e-3, atol=1e-5, rtol=1e-4)


def test_a_target_too_unlikely_for_float32_has_its_loss() -> None:
    hidden, weight = torch.full((1, 1, 1), 200.0, requires_grad=True), torch.tensor([[1.0], [0.0], [-1.0]])
    found = summed_loss(hidden, weight, torch.tensor([[2]]))
    assert found.item() == 400.0
    assert torch.autograd.grad(found, hidden)[0].item() == 2.0  # the likeliest's weight less the target's


def test_bfloat16_logits_cost_no_more_than_their_rounding() -> None:
    hidden, weight, targets = inputs()
    exact = summed_loss(hidden, weight, targets)
    of_exact = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        found = summed_loss(hidden, weight, targets)
    assert found.dtype == torch.float32
    assert abs(found.item() / exact.item() - 1) < 3e-3
    for mine, its in zip(torch.autograd.grad(found, (hidden, weight)), of_exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - its).norm() < 0.01 * its.norm()


def test_memory_that_was_never_written_does_not_reach_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    new_empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: new_empty(self, *shape).fill_(math.nan))
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = summed_loss(hidden, weight, targets)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, (hidden, weight)))


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, targets = inputs()
    total = summed_loss(hidden, weight, targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a summed loss allows one backward pass: compute it again"):
        total.backward()


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("chunk", [2**26, 20 * 256])
def test_without_gradients_recorded_none_are_made(
    without: Callable[[], AbstractContextManager[None]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "LOGITS_AT_ONCE", chunk)
    hidden, weight, targets = inputs()
    expected = summed_loss(hidden, weight, targets)
    with without(), FlopCounterMode(display=False) as counter:
        found = summed_loss(hidden, weight, targets)
    assert counter.get_total_flops() == 2 * targets.numel() * N_VOCAB * D_MODEL  # of the logits alone
    assert not found.requires_grad
    assert found == expected


def test_an_odd_vocabulary_is_padded_inside_and_nowhere_else() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layers=1, d_model=8, n_heads=2, n_vocab=N_VOCAB))
    tokens = torch.randint(N_VOCAB, (2, 11))
    model(tokens[:, :-1], tokens[:, 1:], reduction="sum").backward()
    assert model(tokens).shape == (2, 11, N_VOCAB)
    assert model.state_dict()["token_embedding.weight"].shape == (N_VOCAB, 8)
    assert model.token_embedding.weight.grad is not None
    assert model.token_embedding.weight.grad.shape == (N_VOCAB, 8)
    assert model.config.n_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("frozen", [(), ("token_embedding",), ("blocks",), ("token_embedding", "blocks", "norm")])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 300)])
def test_the_tied_gradient_is_what_autograd_makes_of_both_ends(frozen: tuple[str, ...], shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layers=2, d_model=24, n_heads=3, n_vocab=N_VOCAB))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    tokens, targets = torch.randint(N_VOCAB, (2, 2, *shape))
    targets[0] = -1  # a micro-batch without any

    def gradients(reduction: Literal["none", "sum"]) -> dict[str, Tensor | None]:
        model.zero_grad()
        for batch in range(2):  # added up
            loss = model(tokens[batch], targets[batch], reduction=reduction).sum()
            if loss.requires_grad:
                (loss / 7).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    found, expected = gradients("sum"), gradients("none")
    for name, gradient in expected.items():
        assert (gradient is None) == name.startswith(frozen)
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_without_tokens_there_is_no_gradient() -> None:
    hidden, weight = torch.randn(1, 0, D_MODEL, requires_grad=True), torch.randn(N_VOCAB, D_MODEL, requires_grad=True)
    summed_loss(hidden, weight, torch.zeros(1, 0, dtype=torch.int64)).backward()
    assert not weight.grad.any()
    assert GPT(GPTConfig(1, 16, 2, 31))(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, 31)

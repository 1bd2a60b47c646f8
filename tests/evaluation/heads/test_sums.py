"""Weights of attention and their sums, against a plain softmax in float64."""

import numpy as np
import pytest
import torch

from gptstar.evaluation.heads.sums import Sums, summing
from gptstar.model import GPT, attention
from gptstar.model.attention import Attention
from gptstar.model.positions import POSITIONS, Fire
from support import definitions
from support.positions import SIZES, build

KINDS = ["alibi", "rotary", "none", "t5", "kerple", "fire", "log_alibi", "p_rope", "fox"]
THRESHOLD, TRAINED_AT, N_QUERIES, EDGES = 13, 17, 11, (1, 2, 5, 30, 40)
N_HEADS, D_HEAD = SIZES["n_heads"], SIZES["d_head"]


def model_of(kind: str) -> GPT:
    model = build(Fire(THRESHOLD) if kind == "fire" else POSITIONS.parse(kind))
    with torch.no_grad():
        for layer in layers_of(model):  # as drawn, all scores would be nearly equal
            layer.qkv.weight.mul_(20)
    return model


def layers_of(model: GPT) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def inputs_of(model: GPT, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What each layer reads: `(window, position, d_model)`."""
    inputs = []
    handles = [
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone())) for layer in layers_of(model)
    ]
    model.hidden(tokens)
    for handle in handles:
        handle.remove()
    return inputs


def exact_weights(kind: str, layer: Attention, x: np.ndarray) -> np.ndarray:
    """Weights by the kind's paper, in float64: `(head, query, key)` for `x`, `(position, d_model)`."""
    weight, bias = (each.detach().double().numpy() for each in layer.qkv.parameters())
    query, key, _ = (x @ weight.T + bias).reshape(len(x), 3, N_HEADS, D_HEAD).transpose(1, 2, 0, 3)
    query, key = (definitions.turned(kind, each, 0.75) for each in (query, key))
    (module,) = layer._of_positions
    named = {} if module is None else dict(module.named_parameters())
    given = {name: each.detach().double().numpy() for name, each in named.items()}
    rows = np.arange(len(x))
    added = definitions.bias(kind, N_HEADS, rows, len(x), given | {"x": x, "threshold": np.float64(THRESHOLD)})
    return definitions.attention(query, key, np.eye(len(x))[None], added, rows)  # values that tell keys apart


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 5 * 2 * N_HEADS * 41, 2**22])  # weights: one query, five, all
def test_weights_are_those_of_the_paper(kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WEIGHTS_AT_ONCE", at_once)
    model, tokens = model_of(kind), torch.randint(31, (2, 41))
    for layer, x in zip(layers_of(model), inputs_of(model, tokens), strict=True):
        found = torch.zeros(2, N_HEADS, 41, 41)
        blocks = list(layer.weights(x, 7))
        assert len(blocks) == {1: 34, 2**22: 1}.get(at_once, 7)
        for pairs, weights in blocks:
            queries, keys = pairs.queries[0].tolist(), pairs.keys[0].tolist()
            assert keys == list(range(queries[-1] + 1))
            found[:, :, queries[0] : queries[-1] + 1, : len(keys)] = weights
        torch.testing.assert_close(found[:, :, 7:].sum(-1), torch.ones(2, N_HEADS, 34))
        for window in (0, 1):
            exact = exact_weights(kind, layer, x[window].double().numpy())
            np.testing.assert_allclose(found[window, :, 7:], exact[:, 7:], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_mixes_values_by_these_weights(kind: str) -> None:
    """The fast form that a layer takes has no weights to look at: its output tells that they are the same."""
    layer, x = layers_of(model_of(kind))[0], torch.randn(2, 41, SIZES["d_model"])
    weights = torch.zeros(2, N_HEADS, 41, 41)
    for pairs, block in layer.weights(x):
        weights[:, :, pairs.queries[0], : block.shape[3]] = block
    value = layer.qkv(x).chunk(3, dim=-1)[2].unflatten(2, (N_HEADS, D_HEAD)).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.out(mixed), layer(x), atol=2e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["alibi", "rotary", "fire"])
def test_sums_are_those_of_exact_weights(kind: str) -> None:
    model, tokens = model_of(kind), torch.randint(31, (5, 41))
    sums = Sums(5, N_QUERIES, model, TRAINED_AT, EDGES)
    for windows in (slice(0, 3), slice(3, 5)):
        with summing(model, sums, windows):
            model.hidden(tokens[windows])
    distance = (np.arange(41)[:, None] - np.arange(41))[-N_QUERIES:]
    for number, x in enumerate(inputs_of(model, tokens)):
        layer = layers_of(model)[number]
        exact = np.stack([exact_weights(kind, layer, each.double().numpy())[:, -N_QUERIES:] for each in x])
        beyond = exact * (distance >= TRAINED_AT)
        assert 0.01 < beyond.sum() / exact.sum() < 0.9
        np.testing.assert_allclose(sums.beyond[:, number], beyond.sum((2, 3)), rtol=1e-4)
        np.testing.assert_allclose(sums.first[:, number], exact[..., 0].sum(2), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(sums.distance[:, number], (exact * distance).sum((2, 3)), rtol=1e-4)
        np.testing.assert_allclose(sums.most_beyond[number], beyond.sum(3).max((0, 2)), rtol=1e-4)
        np.testing.assert_allclose(sums.most_first[number], exact[..., 0].max((0, 2)), rtol=1e-4)
        tails = np.stack([(exact * (distance >= edge)).sum((0, 2, 3)) for edge in EDGES], axis=-1)
        np.testing.assert_allclose(sums.tails[number], tails, rtol=1e-4, atol=1e-9)
        felt = np.where(exact >= 2.0**-24, distance, 0).max((0, 2, 3))
        assert sums.felt[number].tolist() == felt.tolist()


@torch.no_grad()
def test_a_hook_is_gone_after_reading() -> None:
    model, tokens = build(POSITIONS.parse("alibi")), torch.randint(31, (1, 20))
    sums = Sums(1, 5, model, 8, (1,))
    with summing(model, sums, slice(0, 1)):
        model.hidden(tokens)
    before = sums.beyond.copy()
    model.hidden(tokens)
    assert np.array_equal(sums.beyond, before)
    assert before.any()

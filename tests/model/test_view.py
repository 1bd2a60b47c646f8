"""Rows that are not one sequence read from its beginning: the same logits as each sequence has by itself."""

import pytest
import torch

from gptstar.errors import ConfigError
from gptstar.model import GPT, GPTConfig
from gptstar.model.positions import Alibi
from gptstar.model.view import Cache, View

KINDS = [
    {"positions": "alibi"},
    {"positions": "learned", "n_ctx": 13},
    {"positions": "rotary"},
    {"positions": "none", "residual": "sequential"},
]


def build(kind: dict[str, object]) -> GPT:
    torch.manual_seed(5)
    return GPT(GPTConfig(n_layers=2, d_model=30, n_heads=3, n_vocab=31, d_head=14, **kind)).eval()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["positions"])
def test_branches_that_share_a_beginning_have_the_logits_of_whole_sequences(kind):
    model = build(kind)
    start, branches = torch.randint(31, (5,)), [torch.randint(31, (4,)), torch.randint(31, (7,))]
    nodes = torch.cat((start, *branches))
    positions = torch.tensor([*range(5), *range(5, 9), *range(5, 12)])
    branch = torch.tensor([0] * 5 + [1] * 4 + [2] * 7)
    mask = (positions[:, None] >= positions) & ((branch == 0) | (branch[:, None] == branch))
    with torch.inference_mode():
        hidden = model.hidden(nodes[None], View(positions[None], positions[None], mask[None]))
        together = model.logits(hidden)[0]
        first = model(torch.cat((start, branches[0]))[None])[0]
        second = model(torch.cat((start, branches[1]))[None])[0]
    torch.testing.assert_close(together[:9], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat((together[:5], together[9:])), second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["positions"])
def test_text_read_in_pieces_through_a_cache_has_the_logits_of_the_whole(kind):
    model, tokens = build(kind), torch.randint(31, (3, 11))
    cache, pieces = Cache(), []
    with torch.inference_mode():
        for start, stop in ((0, 6), (6, 7), (7, 11)):
            queries, keys = torch.arange(start, stop).expand(3, -1), torch.arange(stop).expand(3, -1)
            view = View(queries, keys, queries[:, :, None] >= keys[:, None], cache)
            pieces.append(model.logits(model.hidden(tokens[:, start:stop], view)))
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["positions"])
@pytest.mark.parametrize("viewed", [False, True])
def test_the_last_block_computes_what_is_selected(kind, viewed):
    model, tokens = build(kind), torch.randint(31, (3, 11))
    selected = torch.tensor([[10, 2], [0, 0], [5, 7]])
    scope = None
    if viewed:  # a gap in the positions, and every other token hidden
        positions = torch.tensor([*range(5), *range(7, 13)]).expand(3, -1)
        mask = (positions[:, :, None] >= positions[:, None]) & (positions[:, None] % 2 == 0)
        scope = View(positions, positions, mask | torch.eye(11, dtype=torch.bool))
    with torch.inference_mode():
        whole = model.hidden(tokens, scope)
        found = model.hidden(tokens, scope, selected)
    expected = torch.stack([row[nodes] for row, nodes in zip(whole, selected, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_cache_grows_and_drops_rows_in_place():
    layer, cache = torch.nn.Identity(), Cache()
    torch.manual_seed(0)
    pieces = [torch.randn(5, 3, length, 7) for length in (4, 1, 1, 1, 2, 1, 6)]
    seen = []  # held, so that no memory is given out twice
    for number, piece in enumerate(pieces):
        if number == 4:
            rows = torch.tensor([0, 3])
            cache.select(rows)
            pieces[:number] = [each[rows] for each in pieces[:number]]
        if number >= 4:
            piece = pieces[number] = piece[:2]
        key, value = cache.extend(layer, piece, -piece)
        assert torch.equal(key, torch.cat(pieces[: number + 1], dim=2))
        assert torch.equal(value, -key)
        seen.append(key)
    assert len({each.data_ptr() for each in seen}) == 3  # 4 tokens, then 8, then 16


def test_a_cache_of_known_capacity_stays_where_it_is():
    layer, cache = torch.nn.Identity(), Cache(9, torch.float32)
    places = {cache.extend(layer, *torch.randn(2, 5, 3, length, 7).bfloat16())[0].data_ptr() for length in (3, 1, 1, 4)}
    assert len(places) == 1
    key, value = cache.extend(layer, *torch.randn(2, 5, 3, 1, 7).bfloat16())
    assert key.dtype is value.dtype is torch.float32
    assert key.data_ptr() not in places


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["positions"])
def test_a_view_without_a_mask_is_causal(kind):
    model, tokens = build(kind), torch.randint(31, (3, 11))
    cache, pieces = Cache(11), []
    with torch.inference_mode():
        for start, stop in ((0, 1), (1, 2), (2, 6), (6, 7), (7, 11)):
            positions = torch.arange(stop)[None]
            view = View(positions[:, start:], positions, cache=cache)
            assert view.is_causal == (start == 0)
            pieces.append(model.logits(model.hidden(tokens[:, start:stop], view)))
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


def test_alibi_of_a_bfloat16_model_counts_past_256():
    """Each head's own mean of the values, were the bias rounded to bfloat16, would be off by a tenth."""
    view, kind = View(torch.tensor([[999]]), torch.arange(1000)[None]), Alibi()
    mask = view.biased_mask(lambda pairs: kind.bias(pairs, 2, None, None), kind)
    assert mask.dtype is torch.float32
    assert mask.shape == (1, 2, 1, 1000)
    assert torch.equal(mask[0, 1, 0], -(999.0 - torch.arange(1000)) / 256)
    assert view.biased_mask(lambda _: None, kind) is mask  # once for all layers


def test_a_view_past_learned_positions_is_refused():
    model, positions = build(KINDS[1]), torch.tensor([[12, 13]])
    view = View(positions, positions, torch.ones(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"14 tokens exceed model.n_ctx=13"):
        model.hidden(torch.tensor([[1, 2]]), view)

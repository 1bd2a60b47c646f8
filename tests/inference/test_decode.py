"""Many prompts continued at once: the tokens that each gets by itself, without any cache."""

import pytest
import torch

from gptstar.errors import ConfigError
from gptstar.inference.decode import decode
from gptstar.inference.sampling import Sampling
from support.models import PROMPTS, build, by_itself, by_positions, lively


def read_while_decoding(model, monkeypatch):
    """The logits of each step, `(row, n_vocab)`, as `decode` computes them."""
    seen, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: seen.append(logits(hidden)) or seen[-1])
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"residual": "sequential"}, {"positions": "rotary"}], ids=str)
def test_two_thousand_tokens_are_those_without_a_cache(kind, monkeypatch):
    model, draw = lively(kind), torch.Generator().manual_seed(4)
    prompt = torch.randint(0, model.config.n_vocab, (300,), generator=draw).tolist()
    alone = by_itself(model, prompt, 2000)
    assert len(set(alone)) > 5
    for piece in (1, 64, 299, 300, 1024):
        monkeypatch.setattr("gptstar.inference.rows.PIECE", piece)
        assert decode(model, [prompt], 2000) == [alone]


@by_positions
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], [PROMPTS[1]], [PROMPTS[1], PROMPTS[1][::-1]]])
@pytest.mark.parametrize("piece", [3, 1024])
def test_the_logits_of_every_step_are_those_without_a_cache(kind, prompts, piece, monkeypatch):
    model, n_new = lively(kind), 13
    monkeypatch.setattr("gptstar.inference.rows.PIECE", piece)
    steps = read_while_decoding(model, monkeypatch)
    continuations = decode(model, prompts, n_new)
    monkeypatch.undo()
    assert len(steps) == n_new
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        with torch.inference_mode():
            whole = model(torch.tensor([[*prompt, *continuation[:-1]]]))[0, -n_new:]
        found = torch.stack([step[row] for step in steps])
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
        assert continuation == by_itself(model, prompt, n_new)


@by_positions
def test_rows_end_one_by_one(kind):
    model = lively(kind)
    whole = [by_itself(model, prompt, 13) for prompt in PROMPTS]
    stops = {tokens[number + 2] for number, tokens in enumerate(whole)}
    ended = lambda tokens: tokens[-1] in stops  # noqa: E731
    found = decode(model, PROMPTS, 13, ended=ended)
    assert found == [by_itself(model, prompt, 13, ended) for prompt in PROMPTS]
    assert len({len(tokens) for tokens in found}) > 1


@by_positions
def test_bfloat16_stays_near_its_own_text_read_at_once(kind, monkeypatch):
    model = build(kind).bfloat16()
    steps = read_while_decoding(model, monkeypatch)
    continuations = decode(model, PROMPTS, 9)
    monkeypatch.undo()
    exact = build(kind)
    for row, (prompt, continuation) in enumerate(zip(PROMPTS, continuations, strict=True)):
        with torch.inference_mode():
            whole = exact(torch.tensor([[*prompt, *continuation[:-1]]]))[0, -9:]
        found = torch.stack([step[row] for step in steps])
        assert found.dtype is torch.bfloat16
        assert (found.float() - whole).abs().max() < 0.02 * whole.std() * 2**3


def test_far_beyond_a_training_length_alibi_stays_exact(monkeypatch):
    model = lively({})
    prompt = torch.randint(37, (1, 1500), generator=torch.Generator().manual_seed(5)).tolist()
    steps = read_while_decoding(model, monkeypatch)
    (continuation,) = decode(model, prompt, 5)
    monkeypatch.undo()
    with torch.inference_mode():
        whole = model(torch.tensor([[*prompt[0], *continuation[:-1]]]))[0, -5:]
    torch.testing.assert_close(torch.cat(steps), whole, atol=1e-4, rtol=1e-4)


@by_positions
def test_draws_depend_on_a_texts_number_not_on_its_batch(kind):
    model, sampling = build(kind), Sampling(temperature=1.3, top_k=11, seed=7)
    together = decode(model, PROMPTS, 13, sampling=sampling)
    assert together == decode(model, PROMPTS, 13, sampling=sampling)
    alone = [decode(model, [p], 13, sampling=sampling, numbers=[n])[0] for n, p in enumerate(PROMPTS)]
    assert together == alone
    stop = together[1][4]
    ended = lambda tokens: tokens[-1] == stop  # noqa: E731
    shorter = decode(model, PROMPTS, 13, sampling=sampling, ended=ended)
    assert all(whole[: len(part)] == part for whole, part in zip(together, shorter, strict=True))
    assert together != decode(model, PROMPTS, 13, sampling=Sampling(1.3, 11, seed=8))
    same = decode(model, [PROMPTS[1]] * 3, 13, sampling=sampling)
    assert same[0] != same[1] != same[2]


def test_each_token_is_read_once(monkeypatch):
    model = build({})
    read, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, *rest: read.append(tokens.shape) or hidden(tokens, *rest))
    decode(model, PROMPTS, 4)
    assert read == [(5, 11), (5, 1), (5, 1), (5, 1)]
    assert decode(model, PROMPTS, 1) == [by_itself(model, p, 1) for p in PROMPTS]


def test_nothing_to_do_and_nothing_to_read():
    model = build({})
    assert decode(model, [], 5) == []
    assert decode(model, PROMPTS, 0) == [[]] * 5
    with pytest.raises(ConfigError, match="a prompt has no tokens: give at least one"):
        decode(model, [[1], []], 3)
    with pytest.raises(ConfigError, match="n_new=-1 is negative"):
        decode(model, [[1]], -1)


def test_learned_positions_end():
    model = build({"positions": "learned", "n_ctx": 16})
    assert len(decode(model, PROMPTS, 6)[3]) == 6  # the last token is not read
    with pytest.raises(ConfigError, match=r"prompt of 11 tokens and 7 new ones exceed model\.n_ctx=16"):
        decode(model, PROMPTS, 7)

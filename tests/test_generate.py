"""Drawing tokens, and texts from prompts."""

import math

import numpy as np
import pytest
import torch
from test_scoring import build, by_positions

from gptstar.errors import ConfigError
from gptstar.inference.generate import generate
from gptstar.inference.sampling import GREEDY, Sampling, next_token


def test_greedy_takes_the_likeliest_and_top_k_only_the_k_likeliest():
    logits, draw = torch.randn(3, 53), np.random.default_rng(0)
    assert torch.equal(next_token(logits, torch.empty(0), GREEDY), logits.argmax(-1))
    allowed = logits.topk(5).indices
    for _ in range(40):
        drawn = next_token(logits, torch.from_numpy(draw.random(3)), Sampling(2.0, 5))
        assert (allowed == drawn[:, None]).any(dim=1).all()


@pytest.mark.parametrize("top_k", [None, 3, 100])
def test_draws_follow_the_temperature(top_k):
    logits = torch.tensor([[1.0, -torch.inf, 0.0, -1.0]]).expand(20_000, 4)
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000))
    drawn = next_token(logits, uniform, Sampling(0.5, top_k))
    observed = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(observed, torch.softmax(logits[0] / 0.5, -1), atol=0.015, rtol=0)
    assert observed[1] == 0


def test_the_ends_of_the_unit_interval_draw_what_can_be_drawn():
    logits = torch.tensor([[-torch.inf, 2.0, 0.5, -torch.inf]]).expand(2, 4)
    drawn = next_token(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), Sampling(1.0, None))
    assert drawn.tolist() == [1, 2]


def test_uniforms_belong_to_seed_and_number():
    some = Sampling(seed=3).uniforms([5, 2, 5], 7)
    assert some.shape == (3, 7)
    assert torch.equal(some[0], some[2])
    assert torch.equal(some[1], Sampling(seed=3).uniforms([2], 9)[0, :7])
    assert not torch.equal(some[1], Sampling(seed=4).uniforms([2], 7)[0])
    assert ((some >= 0) & (some < 1)).all()


@by_positions
def test_a_batch_is_what_each_prompt_gives_by_itself(kind):
    model, prompts = build(kind), [[7, 3, 1], [2], np.array([4, 4, 4, 4, 5], dtype=np.uint16), torch.tensor([1, 0])]
    greedy = generate(model, prompts, 11, temperature=0)
    for prompt, text in zip(prompts, greedy, strict=True):
        assert text == generate(model, [prompt], 11, temperature=0)[0]
        assert text[: len(prompt)] == [int(token) for token in prompt]
        for end in range(len(prompt), len(text)):
            with torch.inference_mode():
                assert int(model(torch.tensor([text[:end]]))[0, -1].argmax()) == text[end]
    drawn = generate(model, prompts, 11, seed=2, top_k=None)
    assert drawn == generate(model, prompts, 11, seed=2, top_k=None)
    assert drawn[:2] == generate(model, prompts[:2], 11, seed=2, top_k=None)
    assert drawn != generate(model, prompts, 11, seed=3, top_k=None)


def test_a_text_ends_without_what_ends_it():
    model, prompts = build({}), [[7, 3, 1], [2, 30]]
    whole = generate(model, prompts, 20, seed=1, temperature=1.5)
    end = whole[0][9]
    stopped = generate(model, prompts, 20, seed=1, temperature=1.5, end_of_text=end)
    for prompt, text, part in zip(prompts, whole, stopped, strict=True):
        new = text[len(prompt) :]
        assert part == prompt + (new[: new.index(end)] if end in new else new)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": math.nan}, {"top_k": 0}, {"seed": -1}, {"seed": 2**80}, {"n_new": -1}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        generate(build({}), [[1]], **{"n_new": 1} | wrong)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="a prompt has no tokens"):
        generate(build({}), torch.empty(1, 0, dtype=torch.int64), 3)

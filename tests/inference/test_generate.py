"""Drawing tokens, and texts from prompts."""

import math

import numpy as np
import pytest
import tokenizers
import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.inference.generate import TextStream, generate, stream
from gptstar.inference.sampling import GREEDY, Sampling, next_token
from support.models import build_with, by_positions


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


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat, and the dog — naïve — looked on: 猫 " * 40], 290)


@by_positions
def test_a_batch_is_what_each_prompt_gives_by_itself(kind, tokenizer):
    model, prompts = build_with(tokenizer, kind), ["the cat", "", "猫 sat on — a naïve — mat"]
    greedy = generate(model, prompts, 11, sampling=GREEDY)
    for prompt, text in zip(prompts, greedy, strict=True):
        assert text == generate(model, prompt, 11, sampling=GREEDY)[0]
        before = tokenizer.encode([prompt])[0].tolist() or [tokenizer.end_of_text]
        for end, token in enumerate(text.tokens):
            with torch.inference_mode():
                assert int(model(torch.tensor([before + text.tokens[:end]]))[0, -1].argmax()) == token
    drawn = generate(model, prompts, 11, n=2, sampling=Sampling(seed=2))
    assert drawn == generate(model, prompts, 11, n=2, sampling=Sampling(seed=2))
    assert drawn[:4] == generate(model, prompts[:2], 11, n=2, sampling=Sampling(seed=2))
    assert drawn != generate(model, prompts, 11, n=2, sampling=Sampling(seed=3))
    assert drawn[0] != drawn[1]


def test_pieces_are_the_text_that_the_tokenizer_decodes(tokenizer):
    model = build_with(tokenizer, {})
    for sampling in (Sampling(3.0, seed=1), Sampling(50.0, seed=2)):  # the latter cares for no characters
        pieces = list(stream(model, "naïve", 300, sampling=sampling))
        tokens = [piece.token for piece in pieces]
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(tokens)
        assert [piece.ended_by for piece in pieces[:-1]] == (len(pieces) - 1) * [None]
        assert pieces[-1].ended_by == ("length" if len(pieces) == 300 else "end_of_text")


def test_the_end_of_text_ends_a_text(tokenizer):
    ends = set()
    for text in generate(build_with(tokenizer, {}), "the", 300, n=9, sampling=Sampling(50.0, seed=1)):
        ends.add(text.ended_by)
        places = [place for place, token in enumerate(text.tokens) if token == tokenizer.end_of_text]
        assert places == ([len(text.tokens) - 1] if text.ended_by == "end_of_text" else [])
        assert text.ended_by == "end_of_text" or len(text.tokens) == 300
    assert ends == {"end_of_text", "length"}


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_ends_a_text_before_it(tokenizer, length):
    model = build_with(tokenizer, {})
    (whole,) = generate(model, "the", 60, sampling=Sampling(1.5, seed=4))
    for place in (0, 7, 20):
        stop = whole.text[place : place + length]
        pieces = list(stream(model, "the", 60, sampling=Sampling(1.5, seed=4), stop=["never this one", stop]))
        assert "".join(piece.text for piece in pieces) == whole.text[: whole.text.index(stop)]
        assert pieces[-1].ended_by == "stop"
        assert [piece.token for piece in pieces] == whole.tokens[: len(pieces)]


def test_what_might_have_been_a_stop_string_is_not_lost(tokenizer):
    model = build_with(tokenizer, {})
    (whole,) = generate(model, "the", 40, sampling=Sampling(1.5, seed=4))
    nearly = [whole.text[place:] + "!" for place in (-1, -3, -9)]
    assert generate(model, "the", 40, sampling=Sampling(1.5, seed=4), stop=nearly) == [whole]


@pytest.mark.parametrize(
    ("stop", "written", "text", "ended_by"),
    [
        (["<|end|>"], "猫 the<|end|> cat", "猫 the", "stop"),
        (["<|end|>"], "the <|other|>cat", "the cat", None),
        (["<|end|>\nno", " sat"], "the<|end|>\n cat sat", "the\n cat", "stop"),
        (["t<|end|><|other|>", "<|end"], "cat<|end|><|other|>cat", "ca", "stop"),
        (["<|end|>"], "the <|end|>", "the ", "stop"),
        (["<|end|>!"], "the<|end|>", "the", None),
    ],
)
def test_a_special_token_is_a_stop_by_its_name(tokenizer, stop, written, text, ended_by):
    chat = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    chat.add_special_tokens(["<|end|>", "<|other|>"])
    tokens, chat = chat.encode(written).ids, Tokenizer(chat.to_str())
    streamed = TextStream(chat, stop)
    found = ""
    for token in tokens:
        if streamed.ended_by is None:
            found += streamed.add(token)
    assert (found + streamed.rest(), streamed.ended_by) == (text, ended_by)


def test_log_probabilities_are_the_models_own(tokenizer):
    model = build_with(tokenizer, {})
    (text,) = generate(model, "the cat", 9, sampling=Sampling(2.0, 5, seed=1, repetition_penalty=1.5), n_likeliest=3)
    tokens = [*tokenizer.encode(["the cat"])[0].tolist(), *text.tokens]
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([tokens[:-1]]))[0], -1)[-len(text.tokens) :]
    own = expected[range(len(text.tokens)), text.tokens]
    torch.testing.assert_close(torch.tensor(text.log_probabilities), own, atol=1e-5, rtol=0)
    assert [[token for token, _ in row] for row in text.likeliest] == expected.topk(3).indices.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_k": 2.5},
        {"top_k": "a"},
        {"seed": -1},
        {"seed": 2**80},
        {"top_p": 0.0},
        {"top_p": math.nan},
        {"typical_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"repetition_penalty": True},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_requests_that_make_no_sense_are_refused(tokenizer):
    model = build_with(tokenizer, {})
    for wrong in ({"n": 0}, {"n_new": -1}, {"stop": [""]}):
        with pytest.raises(ConfigError):
            generate(model, "a", **{"n_new": 1} | wrong)
    model.tokenizer = None
    with pytest.raises(CheckpointError, match="no tokenizer"):
        generate(model, "a", 1)

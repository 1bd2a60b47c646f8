"""Many prompts continued at once: the tokens that each gets by itself, without any cache."""

import pytest
import torch
from test_scoring import build, by_positions

from gptstar.errors import ConfigError
from gptstar.inference.decode import decode

PROMPTS = [[3], [1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2], [0, 0]]


def lively(kind):
    """A model that does not repeat one token for ever."""
    model = build(kind)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(9)
    return model


def likeliest(logits):
    return logits.argmax(-1, keepdim=True)


def by_itself(model, prompt, n_new, ended=lambda tokens: False):
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(prompt) + n_new and not (tokens[len(prompt) :] and ended(tokens[len(prompt) :])):
            tokens.append(int(model(torch.tensor(tokens)[None])[0, -1].argmax()))
    return tokens[len(prompt) :]


@by_positions
def test_every_prompt_is_continued_as_by_itself(kind):
    model = lively(kind)
    assert decode(model, PROMPTS, 13, likeliest, lambda tokens: False) == [by_itself(model, p, 13) for p in PROMPTS]


@by_positions
def test_rows_end_one_by_one(kind):
    model = lively(kind)
    whole = [by_itself(model, prompt, 13) for prompt in PROMPTS]
    stops = {tokens[number + 2] for number, tokens in enumerate(whole)}
    ended = lambda tokens: tokens[-1] in stops  # noqa: E731
    found = decode(model, PROMPTS, 13, likeliest, ended)
    assert found == [by_itself(model, prompt, 13, ended) for prompt in PROMPTS]
    assert len({len(tokens) for tokens in found}) > 1


@by_positions
def test_long_prompts_are_read_in_pieces(kind, monkeypatch):
    model = lively(kind)
    whole = decode(model, PROMPTS, 9, likeliest, lambda tokens: False)
    for piece in (1, 3, 10):
        monkeypatch.setattr("gptstar.inference.decode.PIECE", piece)
        assert decode(model, PROMPTS, 9, likeliest, lambda tokens: False) == whole


def test_one_token_reads_the_prompts_only():
    model = build({})
    assert decode(model, PROMPTS, 1, likeliest, lambda tokens: False) == [by_itself(model, p, 1) for p in PROMPTS]


def test_learned_positions_end():
    model = build({"positions": "learned", "n_ctx": 16})
    assert len(decode(model, PROMPTS, 6, likeliest, lambda tokens: False)[3]) == 6  # the last token is not read
    with pytest.raises(ConfigError, match=r"17 tokens exceed model\.n_ctx=16"):
        decode(model, PROMPTS, 7, likeliest, lambda tokens: False)

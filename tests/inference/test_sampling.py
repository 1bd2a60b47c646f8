"""Sampling against Hugging Face's processors of the same logits."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gptstar.inference.decode import decode
from gptstar.inference.sampling import GREEDY, Sampling, next_token
from support.models import build

SETTINGS = [
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.95},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "typical_p": 0.8, "repetition_penalty": 1.2},
]


def theirs(settings, had, logits):
    made = LogitsProcessorList()
    if "repetition_penalty" in settings:
        made.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    made.append(TemperatureLogitsWarper(settings.get("temperature", 1.0)))
    for name, warper in (("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("typical_p", TypicalLogitsWarper)):
        if settings.get(name, 1.0) != 1.0 or (name == "top_k" and name in settings):
            made.append(warper(settings[name]))
    return made(had, logits)


def rows(dtype=torch.float32, n_vocab=211):
    """A batch: nearly even, peaked, and with logits that are alike, as bfloat16 makes them."""
    drawn = torch.randn(6, n_vocab, generator=torch.Generator().manual_seed(5))
    return (drawn * torch.tensor([0.1, 1.0, 3.0, 9.0, 1.0, 30.0])[:, None]).to(dtype).float()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filters_leave_exactly_what_theirs_leave(settings, dtype):
    logits = rows(dtype)
    tokens = torch.randint(0, logits.shape[1], (len(logits), 30), generator=torch.Generator().manual_seed(1))
    had = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens, True)
    ours = Sampling(**{"temperature": 1.0} | settings).filtered(logits, had)
    assert torch.equal(ours, theirs(settings, tokens, logits.clone()))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_their_distribution(settings):
    n_drawn = 40_000
    for number, logits in enumerate(rows(n_vocab=40)[:4]):
        tokens = torch.arange(0, 12)[None]
        had = torch.zeros(1, 40, dtype=torch.bool)
        had[0, :12] = True
        expected = torch.softmax(theirs(settings, tokens, logits[None].clone()), dim=-1)[0].double().numpy()
        uniform = torch.from_numpy(np.random.default_rng(number).random(n_drawn))
        some = Sampling(**{"temperature": 1.0} | settings)
        drawn = next_token(logits.expand(n_drawn, -1), uniform, some, had.expand(n_drawn, -1))
        counts = np.bincount(drawn.numpy(), minlength=40)
        assert counts[expected == 0].sum() == 0
        often = expected * n_drawn >= 5
        observed = np.append(counts[often], counts[~often].sum())
        wanted = np.append(expected[often], expected[~often].sum()) * n_drawn
        if len(wanted) > 2 or wanted[-1] > 0:
            keep = wanted > 0
            assert stats.chisquare(observed[keep], wanted[keep] * observed.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 20, seed=3)])
def test_in_a_batch_each_text_is_penalised_for_its_own_tokens(sampling):
    """What fills up a shorter prompt is none of its tokens."""
    some = Sampling(sampling.temperature, sampling.top_k, sampling.seed, repetition_penalty=2.5)
    model, prompts = build({}), [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 0, 7]]
    together = decode(model, prompts, 15, sampling=some)
    for number, prompt in enumerate(prompts):
        assert decode(model, [prompt], 15, sampling=some, numbers=[number])[0] == together[number]
        text = [*prompt]
        for place, token in enumerate(together[number]):
            with torch.inference_mode():
                logits = model(torch.tensor([text]))[:, -1]
            had = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, torch.tensor([text]), True)
            uniform = some.uniforms([number], 15)[:, place : place + 1].flatten()
            assert int(next_token(logits, uniform, some, had)) == token
            text.append(token)

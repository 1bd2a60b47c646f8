"""Requests for log-likelihoods, and their scores by one plain forward each."""

import random

import torch

from gptstar.evaluation.tasks.scoring import Scorable, Score
from gptstar.model import GPT
from support.models import N_VOCAB


def requests(seed: int = 0, n_contexts: int = 9, longest: int = 40) -> list[Scorable]:
    """Choices that share contexts, contexts that share beginnings, one-token choices, and some by themselves."""
    draw = random.Random(seed)
    tokens = lambda n: [draw.randrange(N_VOCAB) for _ in range(n)]  # noqa: E731
    beginning, made = tokens(11), []
    for number in range(n_contexts):
        context = (beginning if number % 2 else []) + tokens(draw.randrange(1, longest))
        lengths = [1, 1, 1] if number % 3 == 0 else [draw.randrange(1, 9) for _ in range(draw.randrange(1, 5))]
        made += [Scorable.cut(context, tokens(length), 53) for length in lengths]
    draw.shuffle(made)
    return made


@torch.inference_mode()
def plainly(model: GPT, request: Scorable) -> Score:
    tokens = torch.tensor(request.tokens)
    logits = model(tokens[None, :-1])[0, -request.n_scored :].double()
    targets = tokens[-request.n_scored :]
    total = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return Score(float(total), bool((logits.argmax(-1) == targets).all()))


def assert_same(found: list[Score], expected: list[Score], asked: list[Scorable]) -> None:
    for one, other, request in zip(found, expected, asked, strict=True):
        assert abs(one.log_likelihood - other.log_likelihood) <= 1e-5 * request.n_scored
        assert one.greedy == other.greedy

"""Log-likelihoods: those of one plain forward for each request, however requests are put together."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.errors import CheckpointError
from gptstar.evaluation.tasks.rows import ROW_TOKENS, rows_of
from gptstar.evaluation.tasks.scoring import Scorable, Score, Scorer
from gptstar.evaluation.tasks.team import Team
from gptstar.evaluation.tasks.worker import Worker
from gptstar.model import GPT
from support.models import KINDS, N_VOCAB, build, by_positions
from support.scoring import assert_same, plainly, requests


def score(model: GPT, asked: list[Scorable], **choices: Any) -> list[Score]:
    worker = Worker(Scorer(model, **choices), tokenizer=None)  # type: ignore[arg-type]  # nothing is written
    return Team(worker).all_results(asked)  # type: ignore[return-value]


@by_positions
@pytest.mark.parametrize("batch_size", [1, 7, 64, None])
@pytest.mark.parametrize("batch_tokens", [1, 97, 8192])
def test_scores_are_those_of_one_forward_each_in_any_batches(kind, batch_size, batch_tokens):
    model, asked = build(kind), requests()
    found = score(model, asked, batch_size=batch_size, batch_tokens=batch_tokens)
    assert_same(found, [plainly(model, request) for request in asked], asked)


def test_greedy_continuations_are_told():
    model, context, n_new = build(KINDS[0]), [5, 3], 6
    tokens = list(context)
    for _ in range(n_new):
        tokens.append(int(model(torch.tensor(tokens)[None])[0, -1].argmax()))
    almost = [*tokens[:-1], (tokens[-1] + 1) % N_VOCAB]
    asked = [Scorable.cut(context, each[2:], 53) for each in (tokens, almost)]
    assert [each.greedy for each in score(model, asked)] == [True, False]


def test_what_is_too_long_loses_its_beginning():
    assert Scorable.cut(range(10), [20, 21], 5) == Scorable((6, 7, 8, 9, 20, 21), 2)
    assert Scorable.cut(range(10), range(20, 25), 5) == Scorable((9, 20, 21, 22, 23, 24), 5)
    for context, continuation in (([], [1]), ([1], []), ([1], range(6))):
        with pytest.raises(ValueError, match="tokens of context"):
            Scorable.cut(context, continuation, 5)


def test_a_shared_context_is_read_once():
    context = list(range(30))
    asked = [Scorable.cut(context, [7, *range(number, number + 5)], 99) for number in range(4)]
    (row,) = rows_of([request.tokens[:-1] for request in asked])
    assert row.branched
    assert len(row.tokens) == 30 + 1 + 4 * 4  # the context, the 7 that all continuations begin with, and what differs
    one_token = [Scorable.cut(context, [number], 99) for number in range(5)]
    (row,) = rows_of([request.tokens[:-1] for request in one_token])
    assert (len(row.tokens), row.branched) == (30, False)


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=20)


@settings(max_examples=150, deadline=None)
@given(sequences, st.randoms())
def test_rows_hold_every_sequence_and_each_node_attends_to_its_own_way(these, draw):
    rows = rows_of(these)
    assert sorted(number for row in rows for number in row.paths) == list(range(len(these)))
    for row in rows:
        mask = row.attention_mask()
        reached = np.zeros(len(row.tokens), dtype=bool)
        for number, path in row.paths.items():
            assert row.tokens[path].tolist() == these[number]
            assert row.positions[path].tolist() == list(range(len(path)))
            for depth, node in enumerate(path):
                assert np.flatnonzero(mask[node]).tolist() == path[: depth + 1].tolist()
            reached[path] = True
        assert reached.all()
        assert row.branched == (max(len(path) for path in row.paths.values()) < len(row.tokens))
    shuffled = list(enumerate(these))
    draw.shuffle(shuffled)
    again = rows_of([sequence for _, sequence in shuffled])
    assert sorted(map(str, (row.tokens.tolist() for row in rows))) == sorted(
        map(str, (row.tokens.tolist() for row in again))
    )


def test_a_row_stops_growing():
    beginning = list(range(500))
    these = [[*beginning, *[number] * 200] for number in range(9)]
    assert [len(row.paths) for row in rows_of(these)] == [2, 2, 2, 2, 1]
    assert all(len(row.tokens) <= ROW_TOKENS for row in rows_of(these))
    assert len(rows_of([[1] * 3000, [2] * 3000])) == 2


def test_batches_hold_what_they_may():
    model, asked = build(KINDS[0]), requests(n_contexts=40)
    for batch_tokens, batch_size in itertools.product((1, 60, 300), (None, 3)):
        batches = Scorer(model, batch_tokens=batch_tokens, batch_size=batch_size).batches(asked)
        assert sorted(number for batch in batches for row in batch for number in row.paths) == list(range(len(asked)))
        for batch in batches:
            assert len({row.branched for row in batch}) == 1
            tokens = len(batch) * max(len(row.tokens) for row in batch)
            assert len(batch) == 1 or tokens <= batch_tokens
            assert len(batch) <= (batch_size or len(batch))


def test_what_is_not_finite_is_refused():
    model = build(KINDS[0])
    with torch.no_grad():
        model.norm.bias[3] = torch.nan
    with pytest.raises(CheckpointError, match="not finite in float32: its weights are damaged or diverged"):
        score(model, requests())
    model = build(KINDS[0])
    with torch.no_grad():
        model.norm.weight.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"not finite in float16: use evaluation\.dtype=float32"):
        score(model, requests(), dtype="float16")


def test_scores_come_out_of_lower_precision_too():
    model, asked = build(KINDS[0]), requests()
    worker = Worker(Scorer(model, dtype="bfloat16"), tokenizer=None)  # type: ignore[arg-type]
    found = Team(worker).all_results(asked)
    exact = score(model, asked)
    differences = [abs(a.log_likelihood - b.log_likelihood) for a, b in zip(found, exact, strict=True)]
    assert 1e-6 < max(differences) < 0.5

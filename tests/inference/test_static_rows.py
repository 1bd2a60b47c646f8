"""Decoding by static tensors, as a GPU does it: the tokens and log-probabilities of the form for CPUs."""

import itertools
from functools import partial

import pytest
import torch

from gptstar.inference import decode as decoding
from gptstar.inference.decode import decode, steps
from gptstar.inference.memory import activation_bytes, cache_bytes
from gptstar.inference.packed import JoinedLinear, PackedGPT, packed
from gptstar.inference.rows import Rows, piece_for
from gptstar.inference.sampling import GREEDY, Sampling
from gptstar.inference.static_rows import BLOCK, StaticCache, StaticRows
from gptstar.model import GPTConfig
from support.models import KINDS, PROMPTS, build, by_itself, by_positions, lively

EQUAL = [PROMPTS[1], PROMPTS[1][::-1], [2, 7, 1, 8, 2, 8, 1]]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def static(monkeypatch):
    """Make `steps` use static rows on the CPU too; the rows that it made."""
    made = []

    def rows_for(model, prompts, n_new, compiled):
        made.append(StaticRows(model, prompts, max(map(len, prompts)) + n_new - 1, compiled=compiled))
        return made[-1]

    return lambda: monkeypatch.setattr(decoding, "_rows_for", rows_for) or made


def ends_at(model, prompts, n_new, place):
    """A rule by which some texts end: at a token that one of them has at this place."""
    stops = {by_itself(model, prompt, n_new)[place] for prompt in prompts[:2]}
    return lambda texts, number: texts[number][-1] in stops


def run(model, prompts, n_new, rule=None, **choices):
    """Every step, and the texts."""
    texts, found = [[] for _ in prompts], []
    ended = None if rule is None else partial(rule, texts)
    for step in steps(model, prompts, n_new, ended=ended, n_likeliest=3, **choices):
        for drawn in step:
            texts[drawn.number].append(drawn.token)
        found.append(step)
    return found, texts


def assert_same_steps(found, expected, atol=1e-5):
    assert list(map(len, found)) == list(map(len, expected))
    for mine, its in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert (mine.number, mine.token) == (its.number, its.token)
        torch.testing.assert_close(mine.log_probability, its.log_probability, atol=atol, rtol=0)
        tokens, values = zip(*mine.likeliest, strict=True)
        other_tokens, other_values = zip(*its.likeliest, strict=True)
        assert tokens == other_tokens
        torch.testing.assert_close(values, other_values, atol=atol, rtol=0)


@by_positions
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], EQUAL], ids=["unequal", "one", "equal"])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(1.3, 11, seed=7, repetition_penalty=1.4)], ids=["greedy", "drawn"]
)
def test_static_steps_are_those_of_a_growing_cache(kind, prompts, ends, sampling, static):
    model, n_new = lively(kind), 13
    rule = ends_at(model, prompts, n_new, 2) if ends else None
    expected, texts = run(model, prompts, n_new, rule, sampling=sampling)
    made = static()
    found, static_texts = run(model, prompts, n_new, rule, sampling=sampling)
    assert_same_steps(found, expected)
    assert static_texts == texts
    assert len(made) == 1
    if ends and sampling is GREEDY and len(prompts) > 1:
        assert min(map(len, texts)) < n_new


@by_positions
@pytest.mark.parametrize("form", [lambda model: model, packed], ids=["plain", "packed"])
def test_static_steps_in_bfloat16(kind, form, static):
    """The model's own types round: texts may part where two tokens are as likely, so each step is given its tokens."""
    model = form(build(kind).bfloat16())
    longest = max(map(len, PROMPTS))
    tokens = torch.zeros(len(PROMPTS), longest, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
    growing, fixed = (form(model, PROMPTS, longest + 9) for form in (Rows, StaticRows))
    with torch.inference_mode():
        expected, found = growing.read_prompts(tokens), fixed.read_prompts(tokens)
        assert torch.equal(found, expected)
        for _ in range(9):
            chosen = expected.float().argmax(-1)
            expected, found = growing.read(chosen), fixed.read(chosen)
            assert found.dtype is torch.bfloat16
            assert (found.float() - expected.float()).abs().max() < 2**-7 * expected.float().abs().max()


def test_rows_are_dropped_when_half_have_ended(static, monkeypatch):
    model, n_rows = lively({}), []
    step = StaticRows.step
    monkeypatch.setattr(StaticRows, "step", lambda self: n_rows.append(len(self._tokens)) or step(self))
    lengths = [2, 9, 4, 3, 9]
    expected = decode(model, PROMPTS, 9, ended=None)
    static()
    texts, found = [[] for _ in PROMPTS], []
    for each in steps(model, PROMPTS, 9, ended=lambda number: len(texts[number]) == lengths[number]):
        found.append([drawn.number for drawn in each])
        for drawn in each:
            texts[drawn.number].append(drawn.token)
    assert texts == [text[:length] for text, length in zip(expected, lengths, strict=True)]
    assert found == [[0, 1, 2, 3, 4]] * 2 + [[1, 2, 3, 4], [1, 2, 4]] + [[1, 4]] * 5
    # The fifth token's step has begun when the caller learns that the third row of five has ended.
    assert n_rows == [5] * 4 + [2] * 4


CUT = {"attention_window": 6, "attention_sinks": 2, "softmax_scale": "ssmax"}


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *(pytest.param(kind, lambda model: model, id=f"{kind['positions']}-plain") for kind in KINDS),
        pytest.param(KINDS[0] | CUT, lambda model: model, id="alibi-cut"),
        pytest.param(KINDS[1], packed, id="learned-packed"),
        pytest.param(KINDS[0], lambda model: PackedGPT(model, JoinedLinear), id="alibi-joined"),
    ],
)
def test_the_static_step_is_one_graph(kind, form):
    model = form(build(kind))
    torch._dynamo.reset()
    with torch.inference_mode():
        plain, compiled = (StaticRows(model, PROMPTS, 19) for _ in range(2))
        tokens = torch.zeros(len(PROMPTS), 11, dtype=torch.int64)
        for rows in (plain, compiled):
            logits = rows.read_prompts(tokens)
        graphs = []

        def backend(graph, _inputs):
            graphs.append(graph)
            return graph.forward

        compiled._launch = torch.compile(compiled.step, fullgraph=True, dynamic=False, backend=backend)
        for _ in range(5):
            chosen = logits.argmax(-1)
            logits, found = plain.read(chosen), compiled.read(chosen)
            torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)
    assert len(graphs) == 1
    copies = [node for node in graphs[0].graph.nodes if node.target in ("item", "tolist", "cpu", torch.tensor)]
    assert not copies


def test_shapes_and_places_stay_and_lengths_share_them():
    model, prompts = build(KINDS[0]), EQUAL
    sizes = set()
    for n_new in (2, BLOCK - 6, BLOCK - 5):
        rows = StaticRows(model, prompts, 7 + n_new - 1)
        with torch.inference_mode():
            rows.read_prompts(torch.tensor(prompts))
            memory = [each for pair in rows._cache._memory.values() for each in pair]
            before = [each.data_ptr() for each in memory]
            for _ in range(3 if n_new > 3 else 1):
                rows.read(torch.tensor([1, 2, 3]))
        assert [each.data_ptr() for each in memory] == before
        sizes |= {each.shape[2] for each in memory}
        assert len(memory) == 4
    assert sizes == {128, 256}  # of 8, 128 and 129 tokens


def test_a_static_cache_writes_at_its_place_and_hides_nothing():
    layer, cache = torch.nn.Identity(), StaticCache(11)
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 1, 5)
    key, value = cache.extend(layer, first, -first)
    assert torch.equal(key, first)
    place = torch.tensor([4])
    cache.fix(place)
    key, value = cache.extend(layer, second, -second)
    assert key.shape == value.shape == (2, 3, 11, 5)
    assert torch.equal(key[:, :, :5], torch.cat((first, second), dim=2))
    assert not key[:, :, 5:].any()
    place += 6
    key, value = cache.extend(layer, second, -second)
    assert torch.equal(value[:, :, 10:], -second)
    cache.select(torch.tensor([1]))
    assert torch.equal(cache.extend(layer, second[1:], second[1:])[1][:, :, :4], -first[1:])


GPT127 = GPTConfig(n_layers=6, d_model=1024, n_heads=8, n_vocab=50257)


def test_pieces_of_prompts_fit_the_memory():
    assert activation_bytes(GPT127, 2) == 2 * 17 * 1024
    assert cache_bytes(GPT127, 2) == 2 * 2 * 6 * 1024
    piece = partial(piece_for, GPT127, itemsize=2)
    assert piece(1, 100_000, 70 * 10**9, is_padded=False) == 4096
    assert piece(1, 9000, 10**9, is_padded=False) == 1024  # a second piece needs a mask of 8 x 1,024 x 9,000 cells
    assert piece(1, 8192, 10**9, is_padded=False) == 8192  # the first needs none
    assert piece(64, 1000, 70 * 10**9, is_padded=True) == 8192
    assert piece(64, 1000, 10**10, is_padded=True) == 1024
    assert piece(64, 1000, 1, is_padded=True) == 64


@needs_gpu
@by_positions
@pytest.mark.parametrize("compiled", [False, True])
def test_a_recorded_step_on_a_gpu_is_that_of_a_growing_cache(kind, compiled, monkeypatch):
    model = lively(kind).to("cuda")
    for prompts in (PROMPTS, PROMPTS[:1]):
        rule = ends_at(model.cpu(), prompts, 13, 5)
        model.to("cuda")
        found, texts = run(model, prompts, 13, rule, compiled=compiled)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_rows_for", lambda model, prompts, n_new, _: Rows(model, prompts, 40))
            expected, growing_texts = run(model, prompts, 13, rule)
        assert_same_steps(found, expected, atol=1e-4)
        assert texts == growing_texts

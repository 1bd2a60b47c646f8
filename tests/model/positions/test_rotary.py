"""Rotary scaling against Hugging Face's; and attention over long contexts in bounded memory."""

import contextlib
import math
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gptstar.model import GPT, GPTConfig
from gptstar.model.attention import causal_attention, scaled_positions
from gptstar.model.kernels import bias, products
from gptstar.model.kernels.bias import BIAS_ELEMENTS, QUERY_BLOCK, query_blocks
from gptstar.model.positions import Scaling, alibi_slopes
from gptstar.model.positions.rotary import (
    ntk_frequencies,
    rotary_angles,
    rotary_frequencies,
    yarn_attention_factor,
    yarn_frequencies,
)

SHAPES = [(128, 512, 8.0), (64, 512, 2.0), (64, 1024, 32.0), (26, 128, 4.0), (192, 512, 3.3)]
"""Head width, training context and factor."""


def theirs(d_head: int, **rope: object) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * d_head,
        num_attention_heads=2,
        head_dim=d_head,
        max_position_embeddings=rope.pop("trained_at"),
        rope_parameters={"rope_theta": 10_000.0, **rope},
    )


@pytest.mark.parametrize(("d_head", "trained_at", "factor"), SHAPES)
def test_yarn_is_that_of_hugging_face(d_head: int, trained_at: int, factor: float) -> None:
    config = theirs(
        d_head,
        trained_at=trained_at,
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=trained_at,
    )
    expected, size = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    found = yarn_frequencies(rotary_frequencies(d_head), factor, trained_at)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    assert yarn_attention_factor(factor) == pytest.approx(size, rel=1e-9)
    assert not torch.allclose(found, rotary_frequencies(d_head), rtol=0.1, atol=0)


@pytest.mark.parametrize(("d_head", "trained_at", "factor"), SHAPES)
def test_ntk_is_that_of_hugging_face_at_this_length(d_head: int, trained_at: int, factor: float) -> None:
    config = theirs(d_head, trained_at=trained_at, rope_type="dynamic", factor=1.0)
    length = round(factor * trained_at)
    expected, size = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=length)
    found = ntk_frequencies(rotary_frequencies(d_head), length / trained_at)
    torch.testing.assert_close(found, expected, atol=0, rtol=2e-6)
    assert size == 1.0
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(float(rotary_frequencies(d_head)[-1]) * trained_at / length, rel=1e-6)


def test_a_head_of_one_pair_has_nothing_to_stretch_by_ntk() -> None:
    assert ntk_frequencies(rotary_frequencies(2), 8.0).tolist() == [1.0]
    assert torch.isfinite(yarn_frequencies(rotary_frequencies(2), 8.0, 512)).all()


@pytest.mark.parametrize("method", ["ntk", "yarn"])
def test_a_factor_of_one_changes_nothing(method: str) -> None:
    positions = torch.arange(100)
    plain, scaled = rotary_angles(positions, 64), rotary_angles(positions, 64, Scaling(method, 1.0, 512))
    for ours, others in zip(plain, scaled, strict=True):
        torch.testing.assert_close(ours, others, atol=1e-5, rtol=0)


def test_yarn_also_sharpens_attention() -> None:
    cosines, sines = rotary_angles(torch.arange(50), 64, Scaling("yarn", 4.0, 512))
    torch.testing.assert_close(cosines**2 + sines**2, torch.full((50, 32), (0.1 * math.log(4) + 1) ** 2))


def test_scaling_is_set_on_a_model_for_a_while_and_not_saved() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(2, 30, 3, 31, d_head=14, positions="rotary")).eval()
    tokens, before = torch.randint(31, (2, 40)), dict(model.state_dict())
    plain = model(tokens)
    with scaled_positions(model, Scaling("yarn", 4.0, 10)):
        scaled = model(tokens)
        assert model.state_dict().keys() == before.keys()
        with contextlib.suppress(ZeroDivisionError), scaled_positions(model, Scaling("ntk", 4.0, 10)):
            assert not torch.allclose(model(tokens), scaled)
            _ = 1 / 0
        torch.testing.assert_close(model(tokens), scaled)
    assert not torch.allclose(plain, scaled, atol=1e-4)
    assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize(("n_positions", "n_heads"), [(1, 8), (700, 3), (4097, 16), (32_768, 8), (100_003, 12)])
def test_no_bias_is_larger_than_its_bound(n_positions: int, n_heads: int) -> None:
    blocks = list(query_blocks(n_positions, n_heads))
    assert [0, *(stop for _, stop in blocks)] == [*(start for start, _ in blocks), n_positions]
    assert all(0 < stop - start <= QUERY_BLOCK for start, stop in blocks)
    assert max(n_heads * (stop - start) * stop for start, stop in blocks) <= BIAS_ELEMENTS


def test_blocks_of_short_contexts_are_whole() -> None:
    for n_heads in (8, 12, 16):
        for start, stop in query_blocks(4096, n_heads):
            assert stop == min(start + QUERY_BLOCK, 4096)


def test_smaller_blocks_give_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 203, 11)
    slopes = torch.tensor(alibi_slopes(3))
    whole = causal_attention(query, key, value, slopes, form="bias")
    monkeypatch.setattr(bias, "BIAS_ELEMENTS", 3 * 203 * 17)
    assert len(list(query_blocks(203, 3))) == 12
    for elements in (3 * 203 * 17, 1):  # of 1, a query at a time at least
        monkeypatch.setattr(bias, "BIAS_ELEMENTS", elements)
        monkeypatch.setattr(products, "BLOCK_SCORES", 2 * elements)
        monkeypatch.setattr(products, "CACHED_SCORES", elements // 2)
        for form in ("bias", "products"):
            found = causal_attention(query, key, value, slopes, form=form)
            torch.testing.assert_close(found, whole, atol=2e-6, rtol=1e-6)


PEAK = """
import torch
from gptstar.evaluation.length.reading import measured
from gptstar.model import GPT, GPTConfig
from gptstar.model.kernels import products
torch.set_num_threads(1)
products.QUERY_BLOCK = products.BLOCK_SCORES = {elements}
model = GPT(GPTConfig(n_layers=1, d_model=16, n_heads=8, n_vocab=31)).eval()
with torch.inference_mode(), measured(torch.device("cpu")) as cost:
    model(torch.randint(31, (1, {length})))
print(cost.memory - cost.held)
"""


def peak_of(**given: int) -> int:
    command = [sys.executable, "-c", PEAK.format(**given)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak on request")
def test_a_process_never_holds_more_than_a_block() -> None:
    """At 4,096 tokens all scores are 0.5 GB; a block's are 8 MB here."""
    assert peak_of(elements=2**21, length=4096) < 100e6  # and what a first run sets up
    assert peak_of(elements=2**40, length=4096) > 500e6  # the measure sees what it is there to see

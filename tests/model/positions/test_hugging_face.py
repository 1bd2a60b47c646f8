"""Kinds of positions against Hugging Face's own code for them."""

import pytest
import torch
from transformers import LlamaConfig, T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from gptstar.model import GPTConfig
from gptstar.model.kernels.bias import linear_bias
from gptstar.model.positions import T5, Pairs, Rotary, Sinusoidal, alibi_slopes
from gptstar.model.positions.t5 import buckets


def test_t5_has_their_buckets() -> None:
    distance = torch.arange(20_000)
    theirs = T5Attention._relative_position_bucket(-distance, bidirectional=False, num_buckets=32, max_distance=128)
    assert torch.equal(buckets(distance), theirs)
    assert buckets(torch.tensor([15, 16, 18, 19, 112, 113, 127, 128])).tolist() == [15, 16, 16, 17, 30, 31, 31, 31]


@pytest.mark.parametrize("n_heads", [12, 7])
def test_t5_has_their_bias(n_heads: int) -> None:
    config = T5Config(d_model=36, d_kv=4, num_heads=n_heads, is_decoder=True)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    at, kind = torch.arange(300)[None], T5()
    parameters = kind.parameters(GPTConfig(1, 4 * n_heads, n_heads, 31))
    with torch.no_grad():
        parameters.weight.copy_(theirs.relative_attention_bias.weight)
        expected = theirs.compute_bias(300, 300).tril()
        for is_run in (True, False):
            found = kind.bias(Pairs(at, at, is_run=is_run), n_heads, parameters, None)
            assert torch.equal(found.tril(), expected)


@pytest.mark.parametrize("n_heads", [8, 12, 7])
def test_alibi_is_blooms_but_for_what_all_keys_share(n_heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 300, dtype=torch.int64), n_heads, torch.float32)  # (head, 1, key)
    ours = linear_bias(torch.tensor(alibi_slopes(n_heads)), range(299, 300), range(300))  # (head, 1, key)
    torch.testing.assert_close(ours - ours[:, :, :1], theirs, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("n_heads", [12, 7])
def test_rotary_is_llamas(n_heads: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=8 * n_heads,
        num_attention_heads=n_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    query, key = torch.randn(2, 1, n_heads, 64, 8)
    at = torch.arange(64)[None]
    expected = apply_rotary_pos_emb(query, key, *LlamaRotaryEmbedding(config)(query, at))
    for ours, theirs in zip(Rotary().rotate(query, key, at, at), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_sinusoidal_is_distilberts() -> None:
    theirs = torch.empty(4096, 30)
    create_sinusoidal_embeddings(4096, 30, theirs)
    ours = Sinusoidal().embed(torch.zeros(1, 4096, 30), None, None)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

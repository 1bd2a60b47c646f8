"""The architecture of transformers that comes closest to GPT*, and where it differs."""

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

from gptstar.model import GPT, GPTConfig

pytestmark = pytest.mark.usefixtures("transformers_offline")


def as_falcon(model: GPT) -> FalconForCausalLM:
    c, ours = model.config, model.state_dict()
    falcon = FalconForCausalLM(
        FalconConfig(
            vocab_size=c.n_vocab,
            hidden_size=c.d_model,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            ffn_hidden_size=c.mlp_width,
            alibi=True,
            parallel_attn=True,
            new_decoder_architecture=False,
            multi_query=False,
            bias=True,
            attn_implementation="eager",
        )
    )
    theirs = {
        "lm_head.weight": ours["token_embedding.weight"],
        "transformer.word_embeddings.weight": ours["token_embedding.weight"],
    }
    for leaf in ("weight", "bias"):
        theirs[f"transformer.ln_f.{leaf}"] = ours[f"norm.{leaf}"]
        for layer in range(c.n_layers):
            block = {
                name: ours[f"blocks.{layer}.{name}.{leaf}"] for name in ("norm", "attention.out", "mlp.up", "mlp.down")
            }
            qkv = ours[f"blocks.{layer}.attention.qkv.{leaf}"]  # (3 * head * d_head, …); theirs begins with the head
            shape = (3, c.n_heads, c.head_width, -1)
            theirs |= {
                f"transformer.h.{layer}.input_layernorm.{leaf}": block["norm"],
                f"transformer.h.{layer}.self_attention.query_key_value.{leaf}": qkv.view(shape)
                .transpose(0, 1)
                .reshape(qkv.shape),
                f"transformer.h.{layer}.self_attention.dense.{leaf}": block["attention.out"],
                f"transformer.h.{layer}.mlp.dense_h_to_4h.{leaf}": block["mlp.up"],
                f"transformer.h.{layer}.mlp.dense_4h_to_h.{leaf}": block["mlp.down"],
            }
    falcon.load_state_dict(theirs)
    return falcon.eval()


def test_falcon_differs_by_its_alibi_alone() -> None:
    torch.manual_seed(2)
    model = GPT(GPTConfig(n_layers=2, d_model=32, n_heads=4, n_vocab=80)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    falcon, tokens = as_falcon(model), torch.randint(80, (1, 200))
    with torch.inference_mode():
        torch.testing.assert_close(falcon(tokens[:, :1]).logits, model(tokens[:, :1]), atol=1e-5, rtol=1e-5)
        assert (falcon(tokens).logits - model(tokens)).abs().max() > 0.1

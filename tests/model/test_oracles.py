"""Logits against Hugging Face's models, random weights mapped over: implementations that are not ours."""

import torch
import transformers
from torch import Tensor

from gptstar.model import GPT, GPTConfig

SIZES = {"n_layers": 3, "d_model": 44, "n_heads": 11, "n_vocab": 97}
TOKENS = torch.randint(97, (2, 29), generator=torch.Generator().manual_seed(1))


def randomised(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """Weights far from their initial values, so that no part of the model is nearly silent."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval().state_dict()


def assert_equal_logits(ours: GPTConfig, weights: dict[str, Tensor], theirs: transformers.PreTrainedModel) -> None:
    model = GPT(ours).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        expected = theirs(TOKENS).logits
        assert expected.std() > 0.5
        torch.testing.assert_close(model(TOKENS), expected, atol=2e-5, rtol=1e-5)


def test_gpt2() -> None:
    for gelu, activation in (("tanh", "gelu_new"), ("exact", "gelu")):
        sizes = {"n_layer": 3, "n_embd": 44, "n_head": 11, "vocab_size": 97, "n_positions": 31}
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, activation_function=activation))
        their = randomised(theirs)
        weights = {
            "token_embedding.weight": their["transformer.wte.weight"],
            "position_embedding.weight": their["transformer.wpe.weight"],
            "norm.weight": their["transformer.ln_f.weight"],
            "norm.bias": their["transformer.ln_f.bias"],
        }
        names = {"ln_1": "attention_norm", "ln_2": "mlp_norm", "attn.c_attn": "attention.qkv"}
        names |= {"attn.c_proj": "attention.out", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
        for layer in range(3):
            for name, ours in names.items():
                weight = their[f"transformer.h.{layer}.{name}.weight"]  # their Conv1D is transposed
                weights[f"blocks.{layer}.{ours}.weight"] = weight if weight.ndim == 1 else weight.T
                weights[f"blocks.{layer}.{ours}.bias"] = their[f"transformer.h.{layer}.{name}.bias"]
        config = GPTConfig(**SIZES, residual="sequential", positions="learned", n_ctx=31, gelu=gelu)
        assert_equal_logits(config, weights, theirs)


def test_mpt_with_alibi_and_11_heads() -> None:
    sizes = {"n_layers": 3, "d_model": 44, "n_heads": 11, "vocab_size": 97, "max_seq_len": 64, "expansion_ratio": 4}
    attention = transformers.models.mpt.configuration_mpt.MptAttentionConfig(alibi=True)
    theirs = transformers.MptForCausalLM(transformers.MptConfig(**sizes, attn_config=attention))
    their = randomised(theirs)
    weights = GPT(GPTConfig(**SIZES, residual="sequential")).state_dict()  # for the biases, zero, that MPT has not
    weights["token_embedding.weight"] = their["transformer.wte.weight"]
    weights["norm.weight"] = their["transformer.norm_f.weight"]
    names = {"norm_1": "attention_norm", "norm_2": "mlp_norm", "attn.Wqkv": "attention.qkv"}
    names |= {"attn.out_proj": "attention.out", "ffn.up_proj": "mlp.up", "ffn.down_proj": "mlp.down"}
    for layer in range(3):
        for name, ours in names.items():
            weights[f"blocks.{layer}.{ours}.weight"] = their[f"transformer.blocks.{layer}.{name}.weight"]
    assert_equal_logits(GPTConfig(**SIZES, residual="sequential"), weights, theirs)


def test_gpt_neox_with_rotary() -> None:
    sizes = {"num_hidden_layers": 3, "hidden_size": 44, "num_attention_heads": 11, "vocab_size": 97}
    config = transformers.GPTNeoXConfig(
        **sizes,
        intermediate_size=176,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        use_parallel_residual=False,
        tie_word_embeddings=True,
    )
    theirs = transformers.GPTNeoXForCausalLM(config)
    their = randomised(theirs)
    weights = {"token_embedding.weight": their["gpt_neox.embed_in.weight"]}
    weights |= {f"norm.{leaf}": their[f"gpt_neox.final_layer_norm.{leaf}"] for leaf in ("weight", "bias")}
    names = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    names |= {"attention.dense": "attention.out", "mlp.dense_h_to_4h": "mlp.up", "mlp.dense_4h_to_h": "mlp.down"}
    for layer in range(3):
        for leaf in ("weight", "bias"):
            for name, ours in names.items():
                weights[f"blocks.{layer}.{ours}.{leaf}"] = their[f"gpt_neox.layers.{layer}.{name}.{leaf}"]
            fused = their[f"gpt_neox.layers.{layer}.attention.query_key_value.{leaf}"]
            by_head = fused.view(11, 3, 4, *fused.shape[1:])  # theirs goes by head, then by query, key and value
            weights[f"blocks.{layer}.attention.qkv.{leaf}"] = by_head.transpose(0, 1).reshape(fused.shape)
    assert_equal_logits(GPTConfig(**SIZES, residual="sequential", positions="rotary"), weights, theirs)


def test_gpt_j_for_the_parallel_residual() -> None:
    sizes = {"n_layer": 3, "n_embd": 44, "n_head": 11, "vocab_size": 97, "n_positions": 64, "rotary_dim": 4}
    theirs = transformers.GPTJForCausalLM(
        transformers.GPTJConfig(**sizes, activation_function="gelu_new", tie_word_embeddings=True)
    )
    theirs.lm_head.bias.data.zero_()
    their = randomised(theirs)
    theirs.lm_head.bias.data.zero_()
    ours = GPTConfig(**SIZES, positions="rotary", gelu="tanh")
    weights = GPT(ours).state_dict()  # for the attention's biases, zero, that GPT-J has not
    weights["token_embedding.weight"] = their["transformer.wte.weight"]
    weights |= {f"norm.{leaf}": their[f"transformer.ln_f.{leaf}"] for leaf in ("weight", "bias")}
    for layer in range(3):
        theirs_at, ours_at = f"transformer.h.{layer}", f"blocks.{layer}"
        for leaf in ("weight", "bias"):
            weights[f"{ours_at}.norm.{leaf}"] = their[f"{theirs_at}.ln_1.{leaf}"]
            weights[f"{ours_at}.mlp.up.{leaf}"] = their[f"{theirs_at}.mlp.fc_in.{leaf}"]
            weights[f"{ours_at}.mlp.down.{leaf}"] = their[f"{theirs_at}.mlp.fc_out.{leaf}"]
        weights[f"{ours_at}.attention.out.weight"] = their[f"{theirs_at}.attn.out_proj.weight"]
        halves = [
            their[f"{theirs_at}.attn.{name}_proj.weight"].view(11, 2, 2, 44).transpose(1, 2).reshape(44, 44)
            for name in ("q", "k")  # theirs turns neighbouring features, ours those half a head apart
        ]
        value = their[f"{theirs_at}.attn.v_proj.weight"]
        weights[f"{ours_at}.attention.qkv.weight"] = torch.cat((*halves, value))
    assert_equal_logits(ours, weights, theirs)

"""GPT-2 in Hugging Face's layout: its configuration and its tensor names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from gptstar.errors import CheckpointError
from gptstar.model import GPTConfig
from gptstar.model.positions import Learned

RENAMED = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "norm": "ln_f",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
TRANSPOSED = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
"""Hugging Face's GPT-2 stores these matrices transposed: `(in, out)`."""

NOT_PARAMETERS = re.compile(r"lm_head\.weight|(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
ACTIVATIONS: dict[str, Literal["tanh", "exact"]] = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}


def is_gpt2(model: GPTConfig) -> bool:
    """Return whether Hugging Face's own GPT-2 code can compute this model."""
    same_width = model.n_heads * model.head_width == model.d_model
    is_plain = model.attention_window is None and not model.softmax_scale.counts_keys
    return model.residual == "sequential" and isinstance(model.positions, Learned) and same_width and is_plain


def gpt2_config(model: GPTConfig) -> dict[str, Any]:
    """Make `config.json` for such a model."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": model.n_vocab,
        "n_positions": model.n_ctx,
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.mlp_width,
        "activation_function": "gelu_new" if model.gelu == "tanh" else "gelu",
        "layer_norm_epsilon": 1e-5,
        "residual_init": model.residual_init,  # transformers doesn't know this key, but keeps it
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), model.dropout),
    }


def from_gpt2_config(config: Mapping[str, Any]) -> GPTConfig:
    """Convert Hugging Face's configuration.

    Raises:
        CheckpointError: it requires an unsupported feature; names key and value.
        ConfigError: a value is invalid for gptstar.
        KeyError: a size is missing.
    """
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"activation_function={activation} is not supported: only {', '.join(ACTIVATIONS)}")
    for key, only in (
        ("layer_norm_epsilon", 1e-5),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True),
    ):
        if config.get(key, only) != only:
            raise CheckpointError(f"{key}={config[key]} is not supported: only {only}")
    ours = {
        "n_layers": config["n_layer"],
        "d_model": config["n_embd"],
        "n_heads": config["n_head"],
        "n_vocab": config["vocab_size"],
        "d_ff": config.get("n_inner"),
        "residual": "sequential",
        "positions": "learned",
        "n_ctx": config["n_positions"],
        "gelu": ACTIVATIONS[activation],
        "dropout": config.get("resid_pdrop", 0.0),
        "residual_init": config.get("residual_init", "gpt2"),
    }
    return GPTConfig.parse(ours)


def to_gpt2(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors for Hugging Face, and transpose matrices."""
    renamed = {_theirs(name): tensor for name, tensor in weights.items()}
    return {name: tensor.T if TRANSPOSED.search(name) else tensor for name, tensor in renamed.items()}


def from_gpt2(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Rename the tensors that `parameters` returns for gptstar, and transpose matrices back."""
    renamed = {name: tensors[_theirs(name)] for name in names}
    return {
        name: tensor.T.contiguous() if TRANSPOSED.search(_theirs(name)) else tensor for name, tensor in renamed.items()
    }


def parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the parameters, and add the prefix `transformer.`, which some files omit."""
    return {
        f"transformer.{name.removeprefix('transformer.')}": tensor
        for name, tensor in tensors.items()
        if not NOT_PARAMETERS.fullmatch(name)
    }


def _theirs(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"transformer.{RENAMED[module]}.{leaf}"
    _, layer, part = module.split(".", 2)
    return f"transformer.h.{layer}.{RENAMED[part]}.{leaf}"

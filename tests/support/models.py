"""Small models of every kind, with weights at random."""

import pytest
import torch

from gptstar.model import GPT, GPTConfig
from gptstar.model.positions import alibi_slopes

N_VOCAB = 37

KINDS = [
    {"positions": "alibi", "n_heads": 6},
    {"positions": "learned", "n_ctx": 61, "residual": "sequential", "gelu": "tanh"},
    {"positions": "rotary"},
    {"positions": "none"},
]

by_positions = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["positions"])


def build(kind: dict[str, object]) -> GPT:
    torch.manual_seed(3)
    sizes = {"n_layers": 2, "d_model": 30, "n_heads": 3, "n_vocab": N_VOCAB, "d_head": 14} | kind
    return GPT(GPTConfig(**sizes)).eval()


PROMPTS = [[3], [1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2], [0, 0]]


def lively(kind):
    """A model that does not repeat one token for ever."""
    model = build(kind)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(9)
    return model


def by_itself(model, prompt, n_new, ended=lambda tokens: False):
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(prompt) + n_new and not (tokens[len(prompt) :] and ended(tokens[len(prompt) :])):
            tokens.append(int(model(torch.tensor(tokens)[None])[0, -1].argmax()))
    return tokens[len(prompt) :]


def build_with(tokenizer, kind):
    model = build(kind | {"n_vocab": tokenizer.n_vocab})
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(6)  # so that it does not repeat one token for ever
    model.tokenizer = tokenizer.json_text
    return model


def legacy_state(residual: str, positions: str) -> dict[str, torch.Tensor]:
    """A state dict in the legacy layout, filled at random: 5 heads of 4, 3 layers."""
    D, F, V = 20, 29, 97
    generator = torch.Generator().manual_seed(0)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    state = {"wte.weight": new(V, D)}
    if positions == "learned":
        state["wpe.weight"] = new(23, D)
    for layer in range(3):
        at = f"blocks.{layer}."
        for norm in ("ln1", "ln2")[: 1 if residual == "parallel" else 2]:
            state |= {f"{at}{norm}.weight": 1 + new(D), f"{at}{norm}.bias": new(D)}
        if positions == "alibi":
            state |= {f"{at}attn.slopes": torch.tensor(alibi_slopes(5)), f"{at}attn.mask": torch.ones(1, 1, 9, 9)}
        for part in ("key", "query", "value", "fc_resid"):
            state |= {f"{at}attn.{part}.weight": new(D, D), f"{at}attn.{part}.bias": new(D)}
        state |= {f"{at}mlp.fc1.weight": new(F, D), f"{at}mlp.fc1.bias": new(F)}
        state |= {f"{at}mlp.fc_resid.weight": new(D, F), f"{at}mlp.fc_resid.bias": new(D)}
    return state | {"norm.weight": 1 + new(D), "norm.bias": new(D), "lm_head.weight": state["wte.weight"]}

"""Small models with a kind of positions whose parameters matter."""

import torch

from gptstar.model import GPT, GPTConfig
from gptstar.model.positions import Positions

SIZES = {"n_layers": 2, "d_model": 30, "n_heads": 3, "n_vocab": 31, "d_head": 14, "d_ff": 62}


def build(kind: Positions, **changes: object) -> GPT:
    torch.manual_seed(5)
    model = GPT(GPTConfig(**{**SIZES, **changes}, positions=kind)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_parameters" in name:
                parameter.add_(torch.randn_like(parameter))
    return model


def greedily(model: GPT, prompt: list[int], n_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n_new):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]

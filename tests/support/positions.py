"""Small models with a kind of positions whose parameters matter."""

from pathlib import Path

import torch

from gptstar.checkpoint.format import Checkpoint, write
from gptstar.checkpoint.read import read
from gptstar.model import GPT, GPTConfig
from gptstar.model.positions import Positions

EVERY_FOLDER = {"modeling_gptstar.py", "reading.py", "mask.py", "softmax_scale.py"}
"""Files of code that every exported folder has but GPT-2's."""

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


def trained_and_read_again(kind: Positions, path: Path) -> Checkpoint:
    """Train three steps, in which the loss falls and every parameter has a gradient; what is read of the checkpoint."""
    model, tokens = build(kind).train(), torch.randint(31, (4, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:], reduction="sum") / 44
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    write(path, Checkpoint(model.config, model.state_dict()))
    again = read(path)
    assert again.model == model.config
    assert torch.equal(again.build()(tokens), model.eval()(tokens))
    return again

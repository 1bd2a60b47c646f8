"""Checkpoints as studies of length and of heads take them."""

import torch

from gptstar.checkpoint.format import Checkpoint, TrainingState
from gptstar.data.tokenizer import Tokenizer
from gptstar.evaluation.length.source import Named
from gptstar.model import GPT, GPTConfig


def checkpoint_of(
    tokenizer: Tokenizer | None, *, trained_at: int | None = 32, seed: int = 0, **variant: object
) -> Checkpoint:
    """A small model with initial weights, which knows its training context or does not."""
    torch.manual_seed(seed)
    model = GPTConfig(**{"n_layers": 2, "d_model": 24, "n_heads": 3, "n_vocab": 300} | variant)
    training = TrainingState(5, 5, None, {"data.context_length": trained_at}, {}, {}) if trained_at else None
    return Checkpoint(model, GPT(model).state_dict(), tokenizer and tokenizer.json_text, training)


def named(checkpoint: Checkpoint, name: str = "m") -> Named:
    """The checkpoint with an identity."""
    return {"name": name, "sha256": "0" * 64}, checkpoint

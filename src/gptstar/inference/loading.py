"""Checkpoints loaded to generate text."""

from pathlib import Path
from typing import Literal

import torch

from gptstar.checkpoint.read import load
from gptstar.errors import CheckpointError, ConfigError
from gptstar.inference.int8 import quantised
from gptstar.inference.packed import packed
from gptstar.model import GPT

Weights = Literal["float32", "bfloat16", "int8"]


def load_for_inference(path: Path, *, weights: Weights = "float32", device: str = "auto") -> GPT:
    """Load a checkpoint to generate text with.

    Args:
        path: a checkpoint, a run directory, or an exported folder; with its tokenizer.
        weights: the type to convert them to.
        device: as PyTorch calls it; `auto` takes a GPU where there is one.

    Raises:
        CheckpointError: as `load`; or it has no tokenizer.
        ConfigError: there is no such device, or it has no int8.
    """
    model = load(path)
    if model.tokenizer is None:
        raise CheckpointError(f"{path} holds no tokenizer: import it again with --tokenizer FILE")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and weights != "int8" else "cpu"
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {device} is not available here ({str(error).partition(chr(10))[0]})") from error
    return quantised(model) if weights == "int8" else packed(model.to(getattr(torch, weights)))

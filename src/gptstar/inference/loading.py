"""Load checkpoints for text generation."""

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
    """Load a checkpoint for text generation.

    Args:
        path: a checkpoint, a run directory, or an exported folder, with a tokenizer.
        weights: the precision to which weights are converted.
        device: PyTorch's name of the device; `auto` takes a GPU if there is one.

    Raises:
        CheckpointError: as `load`; or the checkpoint has no tokenizer.
        ConfigError: the device doesn't exist, or doesn't support int8.
    """
    model = load(path)
    if model.tokenizer is None:
        raise CheckpointError(f"{path} has no tokenizer: import it again with --tokenizer FILE")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and weights != "int8" else "cpu"
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"--device {device} is not available on this machine ({str(error).partition(chr(10))[0]})"
        ) from error
    return quantised(model) if weights == "int8" else packed(model.to(getattr(torch, weights)))

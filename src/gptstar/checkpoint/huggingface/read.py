"""A Hugging Face folder as a checkpoint: those that `export` wrote, and GPT-2's."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gptstar.checkpoint.format import Checkpoint, read_tensors
from gptstar.checkpoint.huggingface.gpt2 import from_gpt2, from_gpt2_config
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError, DataError
from gptstar.model import GPT, GPTConfig

INDEX = "model.safetensors.index.json"


def read_huggingface(folder: Path) -> Checkpoint:
    """Read an exported model, or a GPT-2.

    Raises:
        CheckpointError: another architecture, files that are missing or damaged, or weights that don't fit; names the
            folder.
    """
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    try:
        tensors = _tensors(folder)
        if kind == "gptstar":
            known = {field.name for field in fields(GPTConfig)}
            model = GPTConfig(**{key: value for key, value in config.items() if key in known})
        elif kind == "gpt2":
            model, tensors = from_gpt2_config(config), from_gpt2(tensors)
        else:
            raise CheckpointError(f"model_type={kind} is neither gptstar nor gpt2")
        _check(model, tensors)
        tokenizer = folder / "tokenizer.json"
        json_text = Tokenizer.from_file(tokenizer).json_text if tokenizer.exists() else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json is not a model's ({error!r})") from error
    except (CheckpointError, ConfigError, DataError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Checkpoint(model, {name: tensor.float() for name, tensor in tensors.items()}, json_text)


def _tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / INDEX).exists():
        names = sorted(set(_read_json(folder / INDEX)["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names and (folder / "pytorch_model.bin").exists():
        return dict(read_tensors(folder / "pytorch_model.bin"))
    if not names:
        raise CheckpointError("it holds no *.safetensors: copy the whole folder")
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"can't read {name} ({error}): copy it again") from error
    return tensors


def _check(model: GPTConfig, tensors: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in GPT(model).state_dict().items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"the weights lack {name}: copy the whole folder")
        if tensors[name].shape != shape:
            raise CheckpointError(f"{name} is {list(tensors[name].shape)}, not {list(shape)} as its config.json says")
    if extra := set(tensors) - set(expected):
        raise CheckpointError(f"{min(extra)} is no tensor of this model")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path} ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return content

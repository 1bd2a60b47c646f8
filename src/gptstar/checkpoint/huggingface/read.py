"""Read a Hugging Face folder as a checkpoint: one that `export` wrote, or a GPT-2."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from gptstar.checkpoint.format import Checkpoint, check_weights, read_tensors, tensors_of
from gptstar.checkpoint.huggingface.gpt2 import from_gpt2, from_gpt2_config, parameters, to_gpt2
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError, DataError, in_one_line
from gptstar.files import read_json
from gptstar.model import GPTConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"


def read_huggingface(folder: Path) -> Checkpoint:
    """Read an exported model, or a GPT-2.

    Weights are converted to float32.

    Raises:
        CheckpointError: the architecture is another one, files are missing or damaged, or the weights don't fit; names
            the folder, and the tensor by its name in the file.
    """
    config = _read_json(folder / "config.json")
    try:
        model = _model(config)
        tensors = _tensors(folder)
        expected = tensors_of(model, len(tensors))
        if config["model_type"] == "gpt2":
            tensors = parameters(tensors)
            check_weights(tensors, to_gpt2(expected))
            tensors = from_gpt2(tensors, expected)
        else:
            check_weights(tensors, expected)
        json_text = None
        if (folder / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
            tokenizer.check_vocabulary(model.n_vocab, "tokenizer.json")
            json_text = tokenizer.json_text
    except (CheckpointError, DataError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Checkpoint(model, {name: tensor.float() for name, tensor in tensors.items()}, json_text)


def _model(config: Mapping[str, Any]) -> GPTConfig:
    """Return the configuration that a `config.json` describes."""
    kind, known = config.get("model_type"), {field.name for field in fields(GPTConfig)}
    if kind not in ("gptstar", "gpt2"):
        raise CheckpointError(f"model_type={in_one_line(kind)} is not supported: only gptstar and gpt2")
    try:
        if kind == "gpt2":
            return from_gpt2_config(config)
        return GPTConfig.parse({key: value for key, value in config.items() if key in known})
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        cause = error if isinstance(error, ConfigError) else repr(error)
        raise CheckpointError(f"config.json does not describe a model ({in_one_line(cause)})") from error


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of the weights files, by their names in the files."""
    if (folder / INDEX).exists():
        files = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict):
            raise CheckpointError(f"{INDEX} has no weight_map: copy it again")
        names = sorted({str(file) for file in files.values()})
    else:
        names = [WEIGHTS] if (folder / WEIGHTS).exists() else sorted(path.name for path in folder.glob("*.safetensors"))
    if not names and (folder / PICKLED).exists():
        tree = read_tensors(folder / PICKLED)
        if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
            raise CheckpointError(f"{PICKLED} is not a state dict")
        return tree
    if not names:
        raise CheckpointError("it has no *.safetensors file: copy the whole folder")
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except Exception as error:  # damaged headers raise other errors besides SafetensorError
            raise CheckpointError(f"can't read {name} ({in_one_line(error)}): copy it again") from error
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or in_one_line(error)
        raise CheckpointError(f"can't read {path} ({cause})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content

"""The checkpoint file: writer and reader together.

A checkpoint is a `torch.save` archive of tensors and plain dicts, which `torch.load(path, weights_only=True)` reads
without this package. It appears under its name complete or not at all. Reading verifies its checksums.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from torch import Tensor

from gptstar.choices import parse_fields
from gptstar.errors import CheckpointError, ConfigError, in_one_line
from gptstar.fields import NotNegative, Real
from gptstar.files import whole_file
from gptstar.model import GPT, GPTConfig

FORMAT = "gptstar"
FORMAT_VERSION = 1

DESCRIPTION = "checkpoint.json"
"""The file that identifies a folder as a sharded checkpoint."""

CORPUS = {"source": str, "licence": str, "documents": int, "tokens": int, "bytes": int}
"""The fields of each corpus description in a checkpoint, with their types."""

OptimizerState = dict[str, dict[str, Tensor]]
"""Optimizer state by parameter name, such as `{"norm.weight": {"exp_avg": …}}`."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run needs to resume, besides the weights.

    Attributes:
        step: number of completed steps; with the settings, the whole state of data order, schedule and dropout.
        validated_step: the last step whose validation is complete.
        best_loss: lowest validation loss so far, in nats per token; None before the first validation.
        settings: the settings that shape the result, by dotted key; resuming with other values is refused.
        data: `fingerprint` and `shards` (folder) of the training tokens, `epochs` and `blocks` read so far, and
            `corpora`: source, licence, documents, tokens and bytes of text of each corpus.
        optimizer: the optimizer's state.
        machine: how the devices split a step, so that resuming on the same number of devices is bitwise exact.
        callbacks: the state of the user's callbacks, by Lightning's key; plain values.
        ended: the user's `callbacks` as configured, and the `reason` if one of them ended the run before its last step.
    """

    __pydantic_config__: ClassVar[dict[str, bool]] = {"arbitrary_types_allowed": True}  # tensors

    step: NotNegative
    validated_step: NotNegative
    best_loss: Real | None
    settings: dict[str, Any]
    data: dict[str, Any]
    optimizer: OptimizerState
    machine: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer (as JSON text) and, if training may resume, its training state.

    Attributes:
        averaged: weights averaged over steps, by parameter name; empty if there are none.
        is_average: `weights` holds the averaged weights, because the reader requested them.
    """

    model: GPTConfig
    weights: dict[str, Tensor]
    tokenizer: str | None = None
    training: TrainingState | None = None
    averaged: dict[str, Tensor] = field(default_factory=dict)
    is_average: bool = False

    def build(self) -> GPT:
        """Build the model with these weights and the tokenizer, on the CPU, in eval mode.

        Raises:
            CheckpointError: the weights don't fit the configuration.
        """
        with torch.device("meta"):
            model = GPT(self.model)
        try:
            model.load_state_dict(self.weights, assign=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights don't fit the configuration in the checkpoint ({in_one_line(error)})"
            ) from error
        model.tokenizer = self.tokenizer
        return model.eval()

    @property
    def trained_at(self) -> int | None:
        """The context length in training; None if it is unknown."""
        return self.training.settings.get("data.context_length") if self.training else None

    @property
    def trained_tokens(self) -> int | None:
        """Tokens read in training; None if it is unknown."""
        batch_tokens = self.training.settings.get("batch_tokens") if self.training else None
        return self.training.step * batch_tokens if self.training and batch_tokens else None


def in_parts(path: Path) -> bool:
    """Return whether a path is a sharded checkpoint, a folder that several ranks wrote."""
    return (path / DESCRIPTION).is_file()


def read_file(path: Path) -> Checkpoint:
    """Read and verify a checkpoint file.

    Raises:
        CheckpointError: the file is missing, truncated, altered, unsafe, or has another format; names it.
    """
    return parsed(path, read_tensors(path))


def parsed(path: Path, tree: Any, *, lacks_weights: bool = False) -> Checkpoint:
    """Build a checkpoint from the values that were read from a file or a folder.

    Args:
        lacks_weights: the weights are stored elsewhere, and are checked when they are read.

    Raises:
        CheckpointError: the values have another format; names the file.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("format"), str) or tree["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is not a gptstar checkpoint; if it holds weights of the original GPT* code: gptstar import "
            f"{path} OUT"
        )
    version = tree.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {in_one_line(version)}, but this version of gptstar reads {FORMAT_VERSION}: use the "
            "version that wrote it"
        )
    try:
        model, weights, tokenizer, training = (tree[key] for key in ("model", "weights", "tokenizer", "training"))
        state = None if training is None else _training(training)
        averaged = tree.get("averaged", {})  # an older checkpoint has no such entry
        if not (isinstance(weights, dict) and isinstance(averaged, dict) and isinstance(tokenizer, str | None)):
            raise TypeError("weights or tokenizer")
        checkpoint = Checkpoint(GPTConfig.parse(model), weights, tokenizer, state, averaged)
        for tensors in () if lacks_weights else (weights, *([averaged] if averaged else [])):
            check_weights(tensors, tensors_of(checkpoint.model, len(tensors)))
            for name, tensor in tensors.items():
                if tensor.is_meta or tensor.untyped_storage().nbytes() < tensor.nbytes:
                    raise CheckpointError(f"{name} has more numbers than the file holds")
        return checkpoint
    except ConfigError as error:
        raise CheckpointError(f"{path} holds a model that can't be built: {in_one_line(error)}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} lacks a value that its format requires ({in_one_line(repr(error))}): use another checkpoint"
        ) from error


def _training(tree: Any) -> TrainingState:
    if not isinstance(tree, dict):
        raise CheckpointError(f"training={in_one_line(tree)} is not a mapping of keys")
    try:
        state = parse_fields(TrainingState, tree, "training")
    except ConfigError as error:
        raise CheckpointError(in_one_line(error)) from error
    for key in ("data.context_length", "batch_tokens"):
        number = state.settings.get(key, 1)
        if type(number) is not int or number < 1:
            raise CheckpointError(f"{key}={in_one_line(number)} is not a whole number of 1 or more")
    for key in ("fingerprint", "shards"):
        if not isinstance(state.data.get(key, ""), str):
            raise CheckpointError(f"training.data.{key}={in_one_line(state.data[key])} is not a text")
    for corpus in state.data.get("corpora", {}).values():
        if not all(type(corpus[key]) is kind for key, kind in CORPUS.items()):
            raise CheckpointError(
                f"training.data.corpora has an invalid description of a corpus, {in_one_line(corpus)}"
            )
    return state


def tensors_of(model: GPTConfig, n_stored: int) -> dict[str, Tensor]:
    """Build a model's state dict on the meta device, which takes no memory.

    Args:
        n_stored: number of tensors in the file, of which each layer needs at least one.

    Raises:
        CheckpointError: the configuration can't belong to the file.
    """
    if model.n_layers > n_stored:
        raise CheckpointError(f"model.n_layers={model.n_layers} does not fit the {n_stored} tensors of its weights")
    try:
        with torch.device("meta"):
            return GPT(model).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"its configuration does not describe a model ({in_one_line(error)})") from error


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes and dtypes of tensors; sharded ones are given as meta tensors.

    Raises:
        CheckpointError: they belong to another model; names the tensor.
    """
    for name, like in expected.items():
        if name not in weights:
            raise CheckpointError(f"the weights lack {name}: copy the whole checkpoint")
        tensor = weights[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"{name} is not a tensor of numbers")
        if tensor.shape != like.shape or not tensor.is_floating_point():
            kind = "" if tensor.is_floating_point() else f" of {tensor.dtype}"
            raise CheckpointError(
                f"{name} is {list(tensor.shape)}{kind}, not {list(like.shape)} as its configuration says"
            )
    if extra := weights.keys() - expected.keys():
        raise CheckpointError(f"{in_one_line(min(map(str, extra)))} is not a tensor of this model")


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a crash at any moment leaves either the old or the new file, complete.

    Raises:
        CheckpointError: it can't be written, for example because the disk is full; the old file is kept.
    """
    tree = described(checkpoint) | {
        "weights": checkpoint.weights,
        **({"averaged": checkpoint.averaged} if checkpoint.averaged else {}),
        "training": checkpoint.training and vars(checkpoint.training),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            torch.save(tree, file)
    except (OSError, RuntimeError) as error:
        raise not_written(path, error) from error


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the values that every kind of checkpoint stores, besides tensors and training state."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.model.as_dict(),
        "tokenizer": checkpoint.tokenizer,
    }


def not_written(path: Path, error: BaseException, where: str = "") -> CheckpointError:
    """Make the error for a checkpoint that can't be written."""
    if isinstance(error, OSError):
        cause = error.strerror or str(error)
    elif isinstance(error, RuntimeError):  # torch's message, about positions in the file
        cause = "not all of it fits: is the disk full?"
    else:
        cause = repr(error)
    return CheckpointError(f"can't write {path} ({where}{cause}); the earlier file, if any, is unchanged")


def read_tensors(path: Path) -> Any:
    """Read tensors and plain values from a `torch.save` file; verify its checksums, and never run its code.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or a pickle that contains code; names it.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"  # a file from before torch 1.6 is not a zip file, and has no checksums
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise CheckpointError(f"{path} is damaged (checksum of {damaged}): use another checkpoint")
        return torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror or error}") from error
    except UnpicklingError as error:
        if code := re.search(r"GLOBAL (\w+\.[\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} is refused, because its pickle contains code ({code[1]}): use a file with tensors only"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint: torch.save did not write it; use another file") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} was truncated or altered: use another checkpoint") from error
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make torch, zipfile and decompressors raise many kinds of errors
        problem = f"{path} is damaged, empty or not a checkpoint ({in_one_line(error)})"
        raise CheckpointError(f"{problem}: use another checkpoint") from error

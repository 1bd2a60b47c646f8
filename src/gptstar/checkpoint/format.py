"""The checkpoint file: writer and reader together.

A checkpoint is a `torch.save` archive of tensors and plain dicts: `torch.load(path, weights_only=True)` reads it
without this package. It appears under its name complete or not at all, and its checksums are verified when it is read.
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
"""The file by which a checkpoint in parts is recognised."""

CORPUS = {"source": str, "licence": str, "documents": int, "tokens": int, "bytes": int}
"""The fields that describe each corpus in a checkpoint, with their types."""

OptimizerState = dict[str, dict[str, Tensor]]
"""By parameter name, such as `{"norm.weight": {"exp_avg": …}}`."""


@dataclass(frozen=True)
class TrainingState:
    """What a run needs to go on, beside the weights.

    Attributes:
        step: optimizer steps done; with the settings it is the whole state of data order, schedule and dropout.
        validated_step: the last step whose validation is complete.
        best_loss: lowest validation loss so far, nats a token; None before the first validation.
        settings: what shapes the result, as flat dotted keys; a resume under others is refused.
        data: `fingerprint` and `shards` (folder) of the tokens read, `epochs` and `blocks` seen of it, and `corpora`:
            for each its source, licence, documents, tokens and bytes of text.
        optimizer: its state.
        machine: how the devices split a step, so that a run goes on bit by bit on as many of them.
        callbacks: the state of the user's callbacks, by Lightning's key of each; plain values.
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
    """A model with its tokenizer (as JSON text) and, unless it is only to be used, its training state.

    Attributes:
        averaged: weights averaged over steps, by the same names; empty where there are none.
        is_average: `weights` are those, as was asked for when they were read.
    """

    model: GPTConfig
    weights: dict[str, Tensor]
    tokenizer: str | None = None
    training: TrainingState | None = None
    averaged: dict[str, Tensor] = field(default_factory=dict)
    is_average: bool = False

    def build(self) -> GPT:
        """The model with these weights and tokenizer, on the CPU, in eval mode.

        Raises:
            CheckpointError: the weights don't fit the configuration.
        """
        with torch.device("meta"):
            model = GPT(self.model)
        try:
            model.load_state_dict(self.weights, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"the weights don't fit the model they came with ({in_one_line(error)})") from error
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
    """Whether a path is a folder that the ranks of a sharded run wrote."""
    return (path / DESCRIPTION).is_file()


def read_file(path: Path) -> Checkpoint:
    """Read and verify a checkpoint file.

    Raises:
        CheckpointError: missing, cut short, altered, unsafe, or not of this format; names the file.
    """
    return parsed(path, read_tensors(path))


def parsed(path: Path, tree: Any, *, lacks_weights: bool = False) -> Checkpoint:
    """Make a checkpoint of what was read from a file or a folder.

    Args:
        lacks_weights: the weights are elsewhere, and are checked when they are read.

    Raises:
        CheckpointError: it is not of this format; names the file.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("format"), str) or tree["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is not a gptstar checkpoint; if it holds legacy weights: gptstar import {path} OUT"
        )
    version = tree.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {in_one_line(version)}, this version reads {FORMAT_VERSION}: use a matching one"
        )
    try:
        model, weights, tokenizer, training = (tree[key] for key in ("model", "weights", "tokenizer", "training"))
        state = None if training is None else _training(training)
        averaged = tree.get("averaged", {})  # an older checkpoint has none
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
        raise CheckpointError(f"{path} does not hold what its format promises ({in_one_line(repr(error))})") from error


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
            raise CheckpointError(f"training.data.corpora describes a corpus as {in_one_line(corpus)}")
    return state


def tensors_of(model: GPTConfig, n_stored: int) -> dict[str, Tensor]:
    """Make a model's state dict on the meta device, which takes no memory.

    Args:
        n_stored: tensors in the file that describes the model, of which each layer takes one at least.

    Raises:
        CheckpointError: the model can't be that of the file.
    """
    if model.n_layers > n_stored:
        raise CheckpointError(f"model.n_layers={model.n_layers} does not fit the {n_stored} tensors of its weights")
    try:
        with torch.device("meta"):
            return GPT(model).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(f"its configuration can't be that of a model ({in_one_line(error)})") from error


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes and types of tensors, with meta tensors for those in parts.

    Raises:
        CheckpointError: they are another model's; names the tensor.
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
    """Write a checkpoint so that a crash at any moment leaves the old file or the new one, whole.

    Raises:
        CheckpointError: it can't be written, as on a full disk; the old file stands.
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
    """What every form of a checkpoint says of itself, beside its tensors and its training."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.model.as_dict(),
        "tokenizer": checkpoint.tokenizer,
    }


def not_written(path: Path, error: BaseException, where: str = "") -> CheckpointError:
    """The refusal for a checkpoint that can't be written."""
    if isinstance(error, OSError):
        cause = error.strerror or str(error)
    elif isinstance(error, RuntimeError):  # torch's, about positions in the file
        cause = "not all of it fits: is the disk full?"
    else:
        cause = repr(error)
    return CheckpointError(f"can't write {path} ({where}{cause}); what was there before is untouched")


def read_tensors(path: Path) -> Any:
    """Read tensors and plain values from a `torch.save` file; verify its checksums, and never run code.

    Raises:
        CheckpointError: missing, cut short, altered, or a pickle that carries code; names the file.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"  # a file from before torch 1.6 is not one, and has no checksums
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
                f"{path} is refused: its pickle carries code ({code[1]}), not just tensors"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint: torch did not save it") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} was cut short or altered: use another checkpoint") from error
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make torch, zip and its decompressors raise anything
        raise CheckpointError(f"{path} is damaged, empty or not a checkpoint ({in_one_line(error)})") from error

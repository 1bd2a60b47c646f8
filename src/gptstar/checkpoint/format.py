"""The checkpoint file: writer and reader together.

A checkpoint is a `torch.save` archive of tensors and plain dicts: `torch.load(path, weights_only=True)` reads it
without this package. It appears under its name complete or not at all, and its checksums are verified when it is read.
"""

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gptstar.errors import CheckpointError, ConfigError, in_one_line
from gptstar.files import whole_file
from gptstar.model import GPT, GPTConfig

FORMAT = "gptstar"
FORMAT_VERSION = 1

DESCRIPTION = "checkpoint.json"
"""The file by which a checkpoint in parts is recognised."""

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

    step: int
    validated_step: int
    best_loss: float | None
    settings: dict[str, Any]
    data: dict[str, Any]
    optimizer: OptimizerState
    machine: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer (as JSON text) and, unless it is only to be used, its training state."""

    model: GPTConfig
    weights: dict[str, Tensor]
    tokenizer: str | None = None
    training: TrainingState | None = None

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


def parsed(path: Path, tree: Any) -> Checkpoint:
    """Make a checkpoint of what was read from a file or a folder.

    Raises:
        CheckpointError: it is not of this format; names the file.
    """
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a gptstar checkpoint; if it holds legacy weights: gptstar import {path} OUT"
        )
    if tree.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {tree.get('format_version')}, this version reads {FORMAT_VERSION}: use a matching one"
        )
    try:
        training = tree["training"] and TrainingState(**tree["training"])
        if training:
            for name in ("settings", "data", "optimizer", "machine", "callbacks", "ended"):
                if not isinstance(getattr(training, name), dict):
                    raise TypeError(f"training.{name} is no dict")
            if not isinstance(training.step, int) or training.step < 0:
                raise TypeError(f"training.step={training.step}")
        if not isinstance(tree["weights"], dict):
            raise TypeError("weights is no dict")
        return Checkpoint(GPTConfig(**tree["model"]), tree["weights"], tree["tokenizer"], training)
    except ConfigError as error:
        raise CheckpointError(f"{path} holds a model that can't be built: {error}") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold what its format promises ({error!r})") from error


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old file or the new one, whole.

    Raises:
        CheckpointError: it can't be written, as on a full disk; the old file stands.
    """
    tree = described(checkpoint) | {
        "weights": checkpoint.weights,
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
    except (RuntimeError, EOFError, LookupError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, empty or not a checkpoint ({in_one_line(error)})") from error

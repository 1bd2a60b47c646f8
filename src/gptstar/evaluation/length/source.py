"""What each checkpoint of a study reads: its text, the lengths, and the ways to scale its positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptstar.checkpoint.format import Checkpoint
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.length.config import LengthConfig, Scaling
from gptstar.evaluation.length.curve import Plan
from gptstar.evaluation.length.legacy import legacy_text, legacy_windows
from gptstar.evaluation.length.text import Text, text_of_files, text_of_shards
from gptstar.model.positions import POSITIONS

Named = tuple[Mapping[str, Any], Checkpoint]
"""A checkpoint and who it is, as `gptstar.checkpoint.identity` says."""


@dataclass(frozen=True, eq=False)
class Material:
    """What checkpoints with one tokenizer read.

    Attributes:
        plan: what of it at each length; None with `legacy`.
        n_bytes: of the text, with `legacy`.
    """

    text: Text
    plan: Plan | None
    n_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Part:
    """A checkpoint and what it reads.

    Attributes:
        name: of its own among all of a study.
        trained_at: the training context, where somebody knows it.
        tokenizer: its fingerprint.
    """

    name: str
    who: Mapping[str, Any]
    checkpoint: Checkpoint
    trained_at: int | None
    tokenizer: str
    lengths: tuple[int, ...]
    material: Material
    scalings: tuple[Scaling, ...]


def parts_of(checkpoints: Sequence[Named], config: LengthConfig, shards: str | None) -> list[Part]:
    """What each checkpoint reads. Text is tokenised once for each tokenizer.

    Raises:
        ConfigError: text, lengths, training context or scaling that don't fit.
        DataError: as the text's reader; or text that does not fit a checkpoint.
    """
    if shards is not None and config.text is not None:
        raise ConfigError(f"shards={shards} and evaluation.text name two texts: leave one out")
    trained = [_trained_at(checkpoint) or config.trained_at for _, checkpoint in checkpoints]
    lengths = config.lengths(min((each for each in trained if each is not None), default=None))
    read: dict[str, Material] = {}
    parts = []
    for name, (who, checkpoint), trained_at in zip(_names(checkpoints), checkpoints, trained, strict=True):
        scalings = _scalings(name, checkpoint, config, trained_at)
        if config.text is None:
            folder = held_out_shards(checkpoint, shards)
            tokenizer, key = folder.tokenizer, folder.manifest.fingerprint
            if read and key not in read:
                raise ConfigError(
                    "the checkpoints were trained with different text: give one for all, evaluation.text=[…] or "
                    "shards=DIR"
                )
        elif checkpoint.tokenizer is None:
            raise ConfigError(f"{name} holds no tokenizer: give tokenizer=FILE, a `tokenizers` JSON")
        else:
            folder, tokenizer = None, Tokenizer(checkpoint.tokenizer)
            key = tokenizer.fingerprint
        if tokenizer.n_vocab > checkpoint.model.n_vocab:  # fewer is a model padded to a round number
            raise DataError(
                f"{name}: the tokenizer has a vocabulary of {tokenizer.n_vocab:,}, the model of "
                f"{checkpoint.model.n_vocab:,}: give tokenizer=FILE, the one it was trained with"
            )
        if key not in read:
            read[key] = _of_files(tokenizer, config, lengths) if folder is None else _of_shards(folder, config, lengths)
        parts.append(Part(name, who, checkpoint, trained_at, tokenizer.fingerprint, lengths, read[key], scalings))
    return parts


def held_out_shards(checkpoint: Checkpoint, shards: str | None) -> ShardFolder:
    """The shards that a checkpoint is to be read on.

    Args:
        shards: a folder of text; what the checkpoint was trained on, unless given.

    Raises:
        ConfigError: the checkpoint does not know its text.
        DataError: the text is missing, has changed, or was tokenised with another tokenizer.
    """
    data = checkpoint.training.data if checkpoint.training else {}
    if shards is None and "shards" not in data:
        raise ConfigError(
            "the checkpoint does not say what it was trained on: give evaluation.text=[…], or shards=DIR, as "
            "`gptstar prepare` makes"
        )
    folder = ShardFolder(shards or data["shards"])
    if shards is None and folder.manifest.fingerprint != data["fingerprint"]:
        raise DataError(
            f"the shards in {folder.folder} have changed since the checkpoint read them, so its training text "
            "may now be held out: give shards=DIR to read them all the same"
        )
    if checkpoint.tokenizer and Tokenizer(checkpoint.tokenizer).fingerprint != folder.manifest.tokenizer:
        raise DataError(
            f"the shards in {folder.folder} were made with another tokenizer than the checkpoint's: read plain text, "
            "evaluation.text=[…], which each checkpoint reads with its own"
        )
    return folder


def _of_shards(folder: ShardFolder, config: LengthConfig, lengths: Sequence[int]) -> Material:
    joined = config.protocol != "fixed_targets" and config.documents != "apart"
    text = text_of_shards(folder, joined=joined)
    return Material(text, Plan(text, config, lengths))


def _of_files(tokenizer: Tokenizer, config: LengthConfig, lengths: Sequence[int]) -> Material:
    column, last_bytes = config.column, config.last_bytes
    if config.protocol != "legacy":
        joined = config.documents == "joined"
        text = text_of_files(config.paths, tokenizer, column=column, last_bytes=last_bytes, joined=joined)
        return Material(text, Plan(text, config, lengths))
    metric = config.legacy_metric
    text, n_bytes = legacy_text(
        config.paths, tokenizer, metric, column=column, last_bytes=last_bytes, max_tokens=config.limit
    )
    legacy_windows(len(text.documents[0]), max(lengths))  # refuses what is too short
    return Material(text, None, n_bytes)


def _trained_at(checkpoint: Checkpoint) -> int | None:
    settings = checkpoint.training.settings if checkpoint.training else {}
    return settings.get("data.context_length")


def _scalings(name: str, checkpoint: Checkpoint, config: LengthConfig, trained_at: int | None) -> tuple[Scaling, ...]:
    positions = checkpoint.model.positions
    if not positions.scalings:
        return ("none",)
    if trained_at is None and config.rotary_scaling != ("none",):
        raise ConfigError(
            f"{name} has {POSITIONS.name_of(positions)} positions and does not know its training context, which their "
            "scaling starts from: give evaluation.trained_at, or evaluation.rotary_scaling=[none]"
        )
    return tuple(each for each in config.rotary_scaling if each == "none" or each in positions.scalings)


def _names(checkpoints: Sequence[Named]) -> list[str]:
    """Names, told apart by numbers where they are the same."""
    names: list[str] = []
    for who, _ in checkpoints:
        name, number = str(who["name"]), 2
        while name in names:
            name, number = f"{who['name']} ({number})", number + 1
        names.append(name)
    return names

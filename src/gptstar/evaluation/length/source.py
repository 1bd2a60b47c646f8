"""What each checkpoint of a study reads: its text, the lengths, and the ways to scale its positions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptstar.checkpoint.format import Checkpoint
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.length.config import LengthConfig, Scaling
from gptstar.evaluation.length.curve import Plan
from gptstar.evaluation.length.legacy import LegacyPlan, legacy_text
from gptstar.evaluation.length.text import text_of_files, text_of_shards
from gptstar.model.positions import POSITIONS

Named = tuple[Mapping[str, Any], Checkpoint]
"""The identity of a checkpoint, as `gptstar.checkpoint.identity` gives it, and the checkpoint."""


@dataclass(frozen=True, eq=False)
class Part:
    """A checkpoint and what it reads.

    Attributes:
        name: unique in the study.
        trained_at: the training context, if it is known.
        tokenizer: its fingerprint.
        plan: shared by checkpoints with one tokenizer.
    """

    name: str
    identity: Mapping[str, Any]
    checkpoint: Checkpoint
    trained_at: int | None
    tokenizer: str
    plan: Plan | LegacyPlan
    scalings: tuple[Scaling, ...]


def lengths_of(checkpoints: Sequence[Named], config: LengthConfig) -> tuple[int, ...]:
    """The context lengths of a study, ascending; multiples are of the shortest training context.

    Raises:
        ConfigError: no length follows from what is known, or they contradict another key.
    """
    trained = [trained_at for _, each in checkpoints if (trained_at := each.trained_at or config.trained_at)]
    return config.lengths(min(trained, default=None))


def parts_of(checkpoints: Sequence[Named], config: LengthConfig, shards: str | None) -> list[Part]:
    """Decide what each checkpoint reads. Text is tokenised once for each tokenizer.

    Raises:
        ConfigError: text, lengths, training context or scaling that don't fit.
        DataError: the text can't be read, or does not fit a checkpoint.
    """
    if shards is not None and config.text is not None:
        raise ConfigError(f"shards={shards} and {config.KEY}.text name two texts: leave one out")
    lengths = lengths_of(checkpoints, config)
    plans: dict[str, Plan | LegacyPlan] = {}
    parts = []
    names: Counter[str] = Counter()
    for identity, checkpoint in checkpoints:
        name = str(identity["name"])
        names[name] += 1
        if names[name] > 1:
            name = f"{name} ({names[name]})"
        trained_at = checkpoint.trained_at or config.trained_at
        scalings = _scalings(name, checkpoint, config, trained_at)
        folder = None
        if config.text is None:
            folder = _held_out_shards(checkpoint, config, shards)
            tokenizer, key = folder.tokenizer, folder.manifest.fingerprint
            if plans and key not in plans:
                raise ConfigError(
                    f"the checkpoints were trained with different text: give one for all, {config.KEY}.text=[…] or "
                    "shards=DIR"
                )
        elif checkpoint.tokenizer is None:
            raise ConfigError(f"{name} holds no tokenizer: give tokenizer=FILE, a `tokenizers` JSON")
        else:
            tokenizer = Tokenizer(checkpoint.tokenizer)
            key = tokenizer.fingerprint
        tokenizer.check_vocabulary(checkpoint.model.n_vocab, f"{name}: the tokenizer")
        if key not in plans:
            plans[key] = _plan(tokenizer, folder, config, lengths)
        parts.append(Part(name, identity, checkpoint, trained_at, tokenizer.fingerprint, plans[key], scalings))
    return parts


def _held_out_shards(checkpoint: Checkpoint, config: LengthConfig, shards: str | None) -> ShardFolder:
    """Open the shards that a checkpoint is to be read on, by default those that it was trained on."""
    data = checkpoint.training.data if checkpoint.training else {}
    if shards is None and "shards" not in data:
        raise ConfigError(
            f"the checkpoint does not say what it was trained on: give {config.KEY}.text=[…], or shards=DIR, as "
            "`gptstar prepare` makes"
        )
    where = shards or data["shards"]
    if shards is None and "://" not in where and not (Path(where) / "manifest.json").is_file():
        raise DataError(
            f"{where}, the shards that the checkpoint was trained on, is gone: prepare the same text again there, "
            "give shards=DIR if they were moved, or read other text, evaluation.text=[…]"
        )
    folder = ShardFolder(where)
    if shards is None and folder.manifest.fingerprint != data["fingerprint"]:
        raise DataError(
            f"the shards in {folder.folder} have changed since the checkpoint read them, so its training text "
            "may now be held out: give shards=DIR to read them all the same"
        )
    if checkpoint.tokenizer and Tokenizer(checkpoint.tokenizer).fingerprint != folder.manifest.tokenizer:
        raise DataError(
            f"the shards in {folder.folder} were made with another tokenizer than the checkpoint's: read plain text, "
            f"{config.KEY}.text=[…], which each checkpoint reads with its own"
        )
    return folder


def _plan(
    tokenizer: Tokenizer, folder: ShardFolder | None, config: LengthConfig, lengths: Sequence[int]
) -> Plan | LegacyPlan:
    if config.protocol == "legacy":
        return LegacyPlan(*legacy_text(tokenizer, config), config, lengths)
    if folder is None:
        return Plan(text_of_files(tokenizer, config), config, lengths)
    joined = config.protocol != "fixed_targets" and config.documents != "apart"
    return Plan(text_of_shards(folder, joined=joined), config, lengths)


def _scalings(name: str, checkpoint: Checkpoint, config: LengthConfig, trained_at: int | None) -> tuple[Scaling, ...]:
    positions = checkpoint.model.positions
    if not positions.scalings:
        return ("none",)
    if trained_at is None and config.rotary_scaling != ("none",):
        raise ConfigError(
            f"{name} has {POSITIONS.name_of(positions)} positions and does not know its training context, which their "
            f"scaling starts from: give {config.KEY}.trained_at, or {config.KEY}.rotary_scaling=[none]"
        )
    return tuple(each for each in config.rotary_scaling if each == "none" or each in positions.scalings)

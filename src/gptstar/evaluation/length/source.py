"""Choice of what each checkpoint of a study reads: the text, the lengths, and the ways to scale its positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptstar.checkpoint.format import Checkpoint
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.length.config import Control, LengthConfig
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
        name: a name that is unique in the study.
        trained_at: the training context, if it is known.
        tokenizer: the fingerprint of its tokenizer.
        plan: the windows to read; checkpoints with the same tokenizer share a plan.
        scalings: the ways to scale its positions.
        controls: the controls that it is read under.
    """

    name: str
    identity: Mapping[str, Any]
    checkpoint: Checkpoint
    trained_at: int | None
    tokenizer: str
    plan: Plan | LegacyPlan
    scalings: tuple[str, ...]
    controls: tuple[Control, ...] = ()

    @property
    def fixed_plan(self) -> Plan:
        """The plan, for protocols that score the same targets at every length."""
        assert isinstance(self.plan, Plan)
        return self.plan


def lengths_of(checkpoints: Sequence[Named], config: LengthConfig) -> tuple[int, ...]:
    """Return the context lengths of a study, ascending; `multiples` refer to the shortest training context.

    Raises:
        ConfigError: neither lengths nor a training context are known, or they contradict another key.
    """
    trained = [trained_at for _, each in checkpoints if (trained_at := each.trained_at or config.trained_at)]
    return config.with_training_contexts(config.lengths(min(trained, default=None)), trained)


def parts_of(checkpoints: Sequence[Named], config: LengthConfig, shards: str | None) -> list[Part]:
    """Decide what each checkpoint reads. Text is tokenised once for each tokenizer.

    Raises:
        ConfigError: text, lengths, training context or scaling don't fit.
        DataError: the text can't be read, or does not fit a checkpoint.
    """
    _check_alibi_scaling(checkpoints, config)
    lengths = lengths_of(checkpoints, config)
    plans: dict[str, Plan | LegacyPlan] = {}
    parts = []
    for name, (identity, checkpoint) in zip(unique_names(checkpoints), checkpoints, strict=True):
        trained_at = checkpoint.trained_at or config.trained_at
        scalings = _scalings(name, checkpoint, config, trained_at)
        if config.compares_contexts and trained_at is None:
            key = "controls=true" if config.controls else f"judge={config.judge}"
            raise ConfigError(
                f"{name} does not know its training context, which {config.KEY}.{key} compares longer ones with: give "
                f"{config.KEY}.trained_at"
            )
        tokenizer, folder = tokenizer_of(name, checkpoint, config, shards)
        key = tokenizer.fingerprint if folder is None else folder.manifest.fingerprint
        if folder is not None and plans and key not in plans:
            raise ConfigError(
                f"the checkpoints were trained with different text: give one for all, {config.KEY}.text=[…] or "
                "shards=DIR"
            )
        if key not in plans:
            plans[key] = _plan(tokenizer, folder, config, lengths)
        parts.append(
            Part(
                *(name, identity, checkpoint, trained_at, tokenizer.fingerprint, plans[key], scalings),
                config.control_readings,
            )
        )
    return parts


def unique_names(checkpoints: Sequence[Named]) -> list[str]:
    """Return the name of each checkpoint, with a number if an earlier one has the same name."""
    names = [str(identity["name"]) for identity, _ in checkpoints]
    counts = [names[: at + 1].count(name) for at, name in enumerate(names)]
    return [f"{name} ({count})" if count > 1 else name for name, count in zip(names, counts, strict=True)]


def tokenizer_of(
    name: str, checkpoint: Checkpoint, config: LengthConfig, shards: str | None
) -> tuple[Tokenizer, ShardFolder | None]:
    """Return the tokenizer of a checkpoint, and the shards to read if no files are named.

    Raises:
        ConfigError: two texts are named, or none is known; or there is no tokenizer.
        DataError: the text is gone, has changed, or does not fit the checkpoint.
    """
    if shards is not None and config.text is not None:
        raise ConfigError(f"shards={shards} and {config.KEY}.text name two texts: leave one out")
    folder = None
    if config.text is None:
        folder = _held_out_shards(checkpoint, config, shards)
        tokenizer = folder.tokenizer
    elif checkpoint.tokenizer is None:
        raise ConfigError(f"{name} holds no tokenizer: give tokenizer=FILE, a `tokenizers` JSON")
    else:
        tokenizer = Tokenizer(checkpoint.tokenizer)
    tokenizer.check_vocabulary(checkpoint.model.n_vocab, f"{name}: the tokenizer")
    return tokenizer, folder


def _held_out_shards(checkpoint: Checkpoint, config: LengthConfig, shards: str | None) -> ShardFolder:
    """Open the shards that a checkpoint reads, by default those that it was trained on."""
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


def _check_alibi_scaling(checkpoints: Sequence[Named], config: LengthConfig) -> None:
    """Refuse a scaling of ALiBi if no checkpoint has ALiBi; the runs of a sweep may share the setting."""
    kinds = [each.model.positions for _, each in checkpoints]
    if config.alibi_scaling == ("none",) or config.KEY != "evaluation":
        return
    if all(kind.scaling_key != "alibi_scaling" for kind in kinds):
        names = ", ".join(dict.fromkeys(map(POSITIONS.name_of, kinds)))
        given = ",".join(config.alibi_scaling)
        raise ConfigError(
            f"evaluation.alibi_scaling=[{given}] is for alibi positions, and there are {names} only: leave it out"
        )


def _scalings(name: str, checkpoint: Checkpoint, config: LengthConfig, trained_at: int | None) -> tuple[str, ...]:
    positions = checkpoint.model.positions
    scalings = config.scalings_of(positions)
    if trained_at is None and scalings != ("none",):
        raise ConfigError(
            f"{name} has {POSITIONS.name_of(positions)} positions and does not know its training context, which their "
            f"scaling starts from: give {config.KEY}.trained_at, or {config.KEY}.{positions.scaling_key}=[none]"
        )
    return scalings

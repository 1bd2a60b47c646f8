"""Beginning a run, or going on from a checkpoint under the settings that made it."""

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from gptstar.checkpoint.format import Checkpoint, OptimizerState, TrainingState, in_parts
from gptstar.checkpoint.read import read
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.model import GPT, GPTConfig
from gptstar.ranks import Ranks
from gptstar.training.curriculum import CurriculumConfig
from gptstar.training.optimizer import OptimizerConfig
from gptstar.training.schedule import ScheduleConfig
from gptstar.training.sharding import fill, load_sharded, parts_of

OF_SCHEDULE = "schedule."
START_ONLY = {"model.residual_init"}
"""Settings that matter to a run's first step alone."""

LATER_OPTIONS: dict[str, Any] = {
    f"{section}.{field.name}": field.default
    for section, kind in (("optimizer", OptimizerConfig), ("curriculum", CurriculumConfig))
    for field in fields(kind)
    if field.default is not MISSING
}
"""What a checkpoint was made under that knows nothing of an option, because it is older."""


Materialise = Callable[[GPT], OptimizerState]
"""Gives a model in parts, whose tensors are empty, its weights; returns the optimizer's state, in parts too."""


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Attributes:
        model: in train mode; of one that is to be sharded the shapes alone.
        state: to train it from.
        materialise: of one that is to be sharded.
    """

    model: GPT
    state: TrainingState
    materialise: Materialise | None = None


def read_for(path: Path, ranks: Ranks, *, sharded: bool) -> Checkpoint:
    """A checkpoint, verified; without its tensors where each rank will read its own parts.

    Raises:
        CheckpointError: damaged; names the file.
    """
    if sharded and in_parts(path):
        from gptstar.checkpoint.parts import describe, verify_parts

        verify_parts(path, (ranks.rank, ranks.world_size))
        return describe(path)[0]
    return read(path)


def begin(
    source: tuple[Path, Checkpoint] | None,
    config: GPTConfig,
    *,
    seed: int,
    settings: dict[str, Any],
    shards: ShardFolder,
    folder: Path,
    sharded: bool = False,
    branches: bool = False,
) -> Beginning:
    """A model and its state, new or those of a checkpoint.

    Args:
        source: what to go on from; None begins with new weights. One without training state lends its weights to a run
            that begins at step 0.
        settings: what shapes the result, as flat dotted keys.
        folder: the run directory.
        sharded: each rank is to have a part of the model.
        branches: a checkpoint from elsewhere may be of another schedule, if this one gave all its steps the same rate.

    Raises:
        CheckpointError: the checkpoint is of another tokenizer, or its weights don't fit.
        ConfigError: it was made under other settings or from other data; names the keys.
    """
    new = TrainingState(0, 0, None, settings, data={}, optimizer={})
    if source is None:
        if not sharded:
            torch.manual_seed(seed)
            return Beginning(GPT(config), new)

        def draw(model: GPT) -> OptimizerState:
            torch.manual_seed(seed)
            fill(model, model.initial_weights())
            return {}

        return Beginning(_shape_of(config), new, draw)
    path, checkpoint = source
    elsewhere = path.resolve().parent != folder.resolve()
    if branches and elsewhere:
        if checkpoint.training is None:
            raise ConfigError(
                f"branch_from={path} holds weights alone, so there is no step to branch at: begin a run with them by "
                f"resume={path}"
            )
        checkpoint = replace(checkpoint, training=_branched(path, checkpoint.training, settings))
    state = _checked_state(path, checkpoint, config, settings, shards) or new
    if elsewhere:
        state = replace(state, best_loss=None)  # a run's best is its own
    if not sharded:
        return Beginning(checkpoint.build().train(), state)

    def restore(model: GPT) -> OptimizerState:
        if in_parts(path):
            return load_sharded(path, model)
        fill(model, checkpoint.weights.items())
        states = parts_of(state.optimizer, model)
        checkpoint.weights.clear()
        state.optimizer.clear()
        return states

    return Beginning(_shape_of(config), state, restore)


def _shape_of(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def _branched(path: Path, state: TrainingState, settings: dict[str, Any]) -> TrainingState:
    """The state under our schedule, to which theirs was equal till now."""
    try:
        theirs, ours = (
            ScheduleConfig(**{key.removeprefix(OF_SCHEDULE): at[key] for key in at if key.startswith(OF_SCHEDULE)})
            for at in (state.settings, settings)
        )
    except TypeError as error:
        raise ConfigError(
            f"{path} can't be branched from: its schedule is none that this version knows ({error}): use the version "
            "that made it"
        ) from error
    for step in range(state.step):
        there, here = theirs.fraction(step), ours.fraction(step)
        if not math.isclose(there, here, abs_tol=1e-12):
            raise ConfigError(
                f"{path} can't be branched from at step {state.step:,}: at step {step:,} it learned at {there:.3g} of "
                f"the peak, which this schedule puts at {here:.3g}: branch from an earlier checkpoint, or with a later "
                "or shorter decay"
            )
    return replace(state, settings={key: at for key, at in state.settings.items() if not key.startswith(OF_SCHEDULE)})


def _checked_state(
    path: Path, checkpoint: Checkpoint, config: GPTConfig, settings: dict[str, Any], shards: ShardFolder
) -> TrainingState | None:
    if checkpoint.tokenizer and Tokenizer(checkpoint.tokenizer).fingerprint != shards.manifest.tokenizer:
        raise CheckpointError(
            f"{path} was made with another tokenizer than the shards in {shards.folder}: prepare the text with its own"
        )
    seen = checkpoint.training.data.get("fingerprint") if checkpoint.training else None
    if checkpoint.training and seen not in (None, shards.manifest.fingerprint):
        raise ConfigError(
            f"{path} has read the shards in {checkpoint.training.data['shards']}, and those in {shards.folder} hold "
            "other tokens: give the same data, or choose another output to begin anew"
        )
    _check_settings(path, checkpoint, config, settings)
    return checkpoint.training


def _check_settings(path: Path, checkpoint: Checkpoint, config: GPTConfig, settings: dict[str, Any]) -> None:
    theirs = {f"model.{key}": value for key, value in checkpoint.model.as_dict().items()}
    if checkpoint.training and checkpoint.training.settings:
        theirs |= LATER_OPTIONS | checkpoint.training.settings
    ours = {f"model.{key}": value for key, value in config.as_dict().items()} | settings
    differing = [key for key in theirs if key not in START_ONLY and theirs[key] != ours.get(key)]
    if differing:
        listed = ", ".join(f"{key} (there {theirs[key]}, here {ours.get(key)})" for key in differing)
        only = all(key.startswith(OF_SCHEDULE) for key in differing)
        cure = "the same, or another output" + (", with branch_from for another schedule" if only else "")
        raise ConfigError(f"can't go on from {path} under other settings: {listed}: give {cure}")

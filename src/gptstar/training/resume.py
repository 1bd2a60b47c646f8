"""The start of a run: from new weights, or from a checkpoint with the same settings."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptstar.checkpoint.format import Checkpoint, OptimizerState, TrainingState, in_parts
from gptstar.checkpoint.identity import identity
from gptstar.checkpoint.read import read
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.model import GPT, GPTConfig
from gptstar.ranks import Ranks
from gptstar.training.averaging import AVERAGING
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record
from gptstar.training.schedules import SCHEDULES, Schedule
from gptstar.training.settings import differing
from gptstar.training.sharding import fill, load_sharded, parts_of
from gptstar.training.status import read_config

OF_SCHEDULE, OF_AVERAGE = "schedule.", "averaging."

QUICKSTART = "quickstart"
"""The name of runs without an experiment in older versions, even with their own text or model."""

DERIVED = {"schedule.decay_until", "schedule.decay_steps", "curriculum.steps", "averaging.begin"}
"""Settings that follow from `total_steps` unless they are given."""

Materialise = Callable[[GPT], tuple[OptimizerState, dict[str, Tensor]]]
"""A function that fills the empty tensors of a sharded model, and returns this rank's part of the optimizer's state and
the averaged weights, full or sharded."""


@dataclass(frozen=True)
class Beginning:
    """The initial state of a run.

    Attributes:
        model: the model in train mode; if it will be sharded, its shapes only (on the meta device).
        state: the training state.
        materialise: for a model that will be sharded, the function that fills its tensors.
        averaged: the averaged weights; empty before averaging begins, and for a model that will be sharded.
    """

    model: GPT
    state: TrainingState
    materialise: Materialise | None = None
    averaged: dict[str, Tensor] = field(default_factory=dict)


def read_for(path: Path, record: Record, ranks: Ranks, *, sharded: bool) -> Checkpoint:
    """Read and verify a checkpoint; of a sharded checkpoint without its tensors, because each rank reads its own.

    If the run only takes the checkpoint's weights (`init_from`), the training state is dropped.

    Raises:
        CheckpointError: the checkpoint is damaged; the message names the file.
    """
    if sharded and in_parts(path):
        from gptstar.checkpoint.parts import verify_parts

        checkpoint = verify_parts(path, (ranks.rank, ranks.world_size))
    else:
        checkpoint = read(path)
    begins = record.init_from is not None and path.resolve().parent != record.output.resolve()
    return replace(checkpoint, training=None, averaged={}) if begins else checkpoint


def initial_weights(source: tuple[Path, Checkpoint] | None, record: Record) -> dict[str, Any]:
    """Return the identity of the checkpoint that gave a run its weights; empty if it began with new weights."""
    if source is None or record.init_from is None:
        return {}
    path, checkpoint = source
    if checkpoint.training:
        return {key: value for key, value in checkpoint.training.data.items() if key == "init_from"}
    known = identity(path, checkpoint)
    return {"init_from": {"path": known["path"], "sha256": known["sha256"]}}


def begin(
    source: tuple[Path, Checkpoint] | None,
    recipe: Recipe,
    settings: dict[str, Any],
    shards: ShardFolder,
    record: Record,
    *,
    sharded: bool,
) -> Beginning:
    """Return the model and its training state, new or from a checkpoint.

    Args:
        source: the checkpoint and its path; None begins with new weights. From a checkpoint without training state, a
            run takes the weights and begins at step 0.
        recipe: the resolved recipe.
        settings: the settings of this run, by dotted key.
        sharded: whether the model will be sharded over ranks.

    Raises:
        CheckpointError: the checkpoint has another tokenizer, or its weights don't fit.
        ConfigError: the checkpoint has other settings or other data, or is beyond the run's last step; the message
            names the keys.
    """
    new = TrainingState(0, 0, None, settings, data={}, optimizer={})
    if source is None:
        if not sharded:
            torch.manual_seed(recipe.seed)
            return Beginning(GPT(recipe.model), new)

        def draw(model: GPT) -> tuple[OptimizerState, dict[str, Tensor]]:
            torch.manual_seed(recipe.seed)
            fill(model, model.initial_weights())
            return {}, {}

        return Beginning(_shape_of(recipe.model), new, draw)
    path, checkpoint = source
    elsewhere = path.resolve().parent != record.output.resolve()
    if record.branch_from is not None and elsewhere:
        if checkpoint.training is None:
            raise ConfigError(
                f"branch_from={path} holds weights only, without a step to branch at: begin a run with them by "
                f"resume={path}"
            )
        averages = _holds_average(path, checkpoint)
        checkpoint = replace(checkpoint, training=_branched(path, checkpoint.training, settings, averages=averages))
    _check_source(path, checkpoint, settings, recipe.total_steps, shards, record)
    state = checkpoint.training or new
    if state.step > recipe.total_steps:
        raise ConfigError(
            f"total_steps={recipe.total_steps} is less than step {state.step} of {path}: give more steps, or choose "
            "another output"
        )
    if elsewhere:
        state = replace(state, best_loss=None, callbacks={}, ended={})  # these belong to the other run
    _check_average(path, checkpoint, recipe, state.step)
    averaged = checkpoint.averaged if checkpoint.training else {}
    if not sharded:
        return Beginning(checkpoint.build().train(), state, averaged=averaged)

    def restore(model: GPT) -> tuple[OptimizerState, dict[str, Tensor]]:
        if in_parts(path):
            states, parts = load_sharded(path, model)
            return (states, parts) if checkpoint.training else ({}, {})
        fill(model, checkpoint.weights.items())
        states = parts_of(state.optimizer, model)
        checkpoint.weights.clear()
        state.optimizer.clear()
        return states, averaged

    return Beginning(_shape_of(recipe.model), state, restore)


def _holds_average(path: Path, checkpoint: Checkpoint) -> bool:
    if not in_parts(path):
        return bool(checkpoint.averaged)
    from gptstar.checkpoint.parts import AVERAGED, tensors_in

    return any(name.startswith(AVERAGED) for name in tensors_in(path))


def _check_average(path: Path, checkpoint: Checkpoint, recipe: Recipe, step: int) -> None:
    """Check that a checkpoint within the averaging phase holds averaged weights; that of another run may lack them."""
    if step and recipe.averaging.share(step) and not _holds_average(path, checkpoint):
        raise ConfigError(
            f"{path} is at step {step:,} and holds no averaged weights, but averaging="
            f"{AVERAGING.name_of(recipe.averaging)} begins earlier: give averaging.begin={step}, or averaging=none"
        )


def _shape_of(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def _branched(path: Path, state: TrainingState, settings: dict[str, Any], *, averages: bool) -> TrainingState:
    """Return the state with this run's schedule, which must equal the checkpoint's up to its step."""
    try:
        theirs = _schedule(state.settings)
    except ConfigError as error:
        raise ConfigError(f"{path} can't be branched from: {error}: use the gptstar version that made it") from error
    ours = _schedule(settings)
    for step in range(state.step):
        there, here = theirs.fraction(step), ours.fraction(step)
        if not math.isclose(there, here, abs_tol=1e-12):
            raise ConfigError(
                f"{path} can't be branched from at step {state.step:,}: at step {step:,} its learning rate was "
                f"{there:.3g} of the peak, but this schedule has {here:.3g}: branch from an earlier checkpoint, or "
                "choose a later or shorter decay"
            )
    prefixes = (OF_SCHEDULE,) if averages else (OF_SCHEDULE, OF_AVERAGE)  # an average continues with its own settings
    ours_alone = {key: value for key, value in settings.items() if key.startswith(prefixes)}
    others = {key: value for key, value in state.settings.items() if not key.startswith(prefixes)}
    return replace(state, settings=others | ours_alone)


def _schedule(settings: dict[str, Any]) -> Schedule:
    own = {key.removeprefix(OF_SCHEDULE): settings[key] for key in settings if key.startswith(OF_SCHEDULE)}
    return SCHEDULES.parse({SCHEDULES.tag: SCHEDULES.before} | own)


def _parts(key: str, there: Any, here: Any) -> list[tuple[str, Any, Any]]:
    """Split the difference of a choice with its own keys, such as positions, into the keys that differ."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [(key, there, here)]
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return [(f"{key}.{name}", there.get(name), here.get(name)) for name in names]


def _check_source(
    path: Path,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    total_steps: int,
    shards: ShardFolder,
    record: Record,
) -> None:
    if checkpoint.tokenizer and Tokenizer(checkpoint.tokenizer).fingerprint != shards.manifest.tokenizer:
        raise CheckpointError(
            f"{path} and the shards in {shards.folder} have different tokenizers: prepare the text with the "
            "checkpoint's tokenizer"
        )
    training = checkpoint.training
    fingerprint = training.data.get("fingerprint") if training else None
    if training and fingerprint not in (None, shards.manifest.fingerprint):
        raise ConfigError(
            f"{path} was trained on the shards in {training.data['shards']}, but those in {shards.folder} hold other "
            "tokens: give the same data, or choose another output to begin anew"
        )
    theirs = {f"model.{key}": value for key, value in checkpoint.model.as_dict().items()}
    if training and training.settings:
        theirs |= training.settings
        ours = settings
    else:  # a checkpoint with weights only: just the model must agree
        ours = {key: value for key, value in settings.items() if key.startswith("model.")}
    changed = [each for key, there, here in differing(theirs, ours) for each in _parts(key, there, here)]
    if not changed:
        return
    listed = ", ".join(f"{key} (checkpoint: {there}, now: {here})" for key, there, here in changed)
    keys = {key for key, _, _ in changed}
    ended = training is not None and training.step == theirs.get("schedule.decay_until")
    if ended and keys <= DERIVED and ours.get("schedule.decay_until") == total_steps:
        same = " ".join(f"{key}={there}" for key, there, _ in changed)
        raise ConfigError(
            f"total_steps={total_steps} would change settings that {path} was trained with: {listed}: give {same} to "
            "train longer with the old values, or choose another output"
        )
    of_schedule = all(key.startswith(OF_SCHEDULE) for key in keys)
    cure = "the same values, or another output" + (", with branch_from for another schedule" if of_schedule else "")
    if record.name != QUICKSTART and _name_of(path.parent) == QUICKSTART:
        cure += f"; experiment={QUICKSTART} has the settings that this run began with"
    raise ConfigError(f"can't resume from {path} with other settings: {listed}: give {cure}")


def _name_of(folder: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return str(read_config(folder).get("name"))
    return None

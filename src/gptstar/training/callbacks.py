"""Callbacks of the user's own: built from the configuration, with their state in our checkpoints."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer

from gptstar.errors import CheckpointError, ConfigError, TrainingError
from gptstar.training.named import build_named

METRICS = r"(train|validation(/.+)?)/(loss|perplexity)|validation(/.+)?/bits_per_byte|gradient_norm(/.+)?|learning_rate"
"""Metrics that a callback can monitor."""

LARGEST = 10_000
"""Values of a tensor that a callback's state may hold; weights belong elsewhere."""


def user_callbacks(options: Mapping[str, Any]) -> list[pl.Callback]:
    """Build the callbacks of `trainer.callbacks`.

    Args:
        options: the keys of `trainer`.

    Raises:
        ConfigError: one can't be built; names it.
    """
    callbacks = [build_named("trainer.callbacks", spec, pl.Callback) for spec in options.get("callbacks", ())]
    keys = [callback.state_key for callback in callbacks]
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if callback.state_dict() and keys.count(callback.state_key) > 1:
            raise ConfigError(f"trainer.callbacks: {name} is given twice with the same arguments: give it once")
        if isinstance(monitor, str) and not re.fullmatch(METRICS, monitor):
            raise ConfigError(
                f"trainer.callbacks: {name} monitors {monitor}, which a run does not measure: choose train/loss, "
                "validation/loss, validation/CORPUS/loss, validation/bits_per_byte, gradient_norm or learning_rate"
            )
    return callbacks


def states_of(callbacks: Sequence[pl.Callback]) -> dict[str, Any]:
    """Return the state of callbacks by their keys, as plain values.

    Raises:
        TrainingError: a callback keeps what a checkpoint can't hold without running code; names it.
    """
    return {each.state_key: _plain(each.state_dict(), type(each).__name__) for each in callbacks if each.state_dict()}


def restore_states(callbacks: Sequence[pl.Callback], states: Mapping[str, Any]) -> None:
    """Restore what `states_of` gave, for those callbacks that are still there.

    Raises:
        CheckpointError: a callback does not take its state; names it.
    """
    for callback in callbacks:
        if (state := states.get(callback.state_key)) is None:
            continue
        try:
            callback.load_state_dict(_tensors(state))
        except Exception as error:
            name = type(callback).__name__
            raise CheckpointError(
                f"the checkpoint's state of trainer.callbacks {name} is refused by it ({error!r}): give the callback "
                "the arguments it had, or another output"
            ) from error


def ended_by(trainer: pl.Trainer, callbacks: Sequence[pl.Callback]) -> str | None:
    """Say which of the user's callbacks ended a run before its last step, and why; None if none of them did.

    `trainer.max_time` ends a run, too, but such a run can go on.
    """
    if trainer.global_step >= trainer.max_steps:
        return None
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    timed_out = any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)
    if not (callbacks and trainer.should_stop) or timed_out:
        return None
    for callback in callbacks:
        if reason := getattr(callback, "stopping_reason_message", None):
            return f"{type(callback).__name__}: {' '.join(str(reason).split())}"
    return f"one of {', '.join(type(callback).__name__ for callback in callbacks)} asked to stop"


def _plain(value: Any, owner: str) -> Any:
    """Tensors as mappings; other values as they are, if they are plain."""
    if isinstance(value, torch.Tensor):
        if value.numel() > LARGEST:
            raise TrainingError(
                f"trainer.callbacks: {owner} keeps {value.numel():,} values in a tensor, more than the {LARGEST:,} "
                "that a checkpoint takes: leave it out of state_dict"
            )
        return {"__tensor__": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {_key(key, owner): _plain(each, owner) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, owner) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (
        str,
        int,
        float,
        bool,
    ):  # not what is derived from them, which is pickled by name
        return value
    raise TrainingError(
        f"trainer.callbacks: {owner} keeps a {type(value).__name__} in its state, and a checkpoint holds tensors and "
        "plain values only: leave it out of state_dict"
    )


def _key(key: Any, owner: str) -> str:
    if not isinstance(key, str):
        raise TrainingError(f"trainer.callbacks: {owner} has a state under {key!r}, which is not a string")
    return key


def _tensors(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"__tensor__", "dtype"}:
        return torch.tensor(value["__tensor__"], dtype=getattr(torch, value["dtype"]))
    if isinstance(value, dict):
        return {key: _tensors(each) for key, each in value.items()}
    return [_tensors(each) for each in value] if isinstance(value, list) else value

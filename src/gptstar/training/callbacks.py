"""The user's own Lightning callbacks: built from the configuration, with their state in our checkpoints."""

import re
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer

from gptstar.errors import CheckpointError, ConfigError, TrainingError, with_type
from gptstar.training.named import build_named

METRICS = "|".join(
    (
        r"train/(loss|perplexity)",
        r"(validation|averaged)(/.+)?/(loss|perplexity|bits_per_byte)",
        r"gradient_norm(/.+)?",
        "learning_rate",
    )
)
"""Metrics that a callback can monitor."""

PLAIN = (str, int, float, bool)

LARGEST = 10_000
"""The most values of a tensor in a callback's state; weights do not belong there."""


class UserCallbacks:
    """The callbacks that a configuration names, with their state in checkpoints.

    Args:
        options: the keys of `trainer`, including `callbacks`.

    Attributes:
        callbacks: the callbacks in the order of the configuration.

    Raises:
        ConfigError: a callback can't be built; the message names it.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._specs = [dict(spec) for spec in options.get("callbacks", ())]
        self.callbacks = [build_named("trainer.callbacks", spec, pl.Callback) for spec in self._specs]
        keys = [callback.state_key for callback in self.callbacks]
        for callback in self.callbacks:
            name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
            if callback.state_dict() and keys.count(callback.state_key) > 1:
                raise ConfigError(f"trainer.callbacks: {name} is given twice with the same arguments: give it once")
            if isinstance(monitor, str) and not re.fullmatch(METRICS, monitor):
                raise ConfigError(
                    f"trainer.callbacks: {name} monitors {monitor}, which a run does not measure: choose train/loss, "
                    "validation/loss, validation/CORPUS/loss, validation/bits_per_byte, averaged/loss, "
                    "gradient_norm or learning_rate"
                )

    def states(self) -> dict[str, Any]:
        """Return the state of each callback by its key, as plain values.

        Raises:
            TrainingError: a callback's state has a value that a checkpoint can't hold; the message names the callback.
        """
        states = [(each, each.state_dict()) for each in self.callbacks]
        return {each.state_key: _plain(state, type(each).__name__) for each, state in states if state}

    def restore(self, states: Mapping[str, Any], ended: Mapping[str, Any]) -> None:
        """Restore the state of each callback that is still configured.

        If the configuration changed an argument, such as the patience of EarlyStopping, the new value wins over the one
        in the state.

        Args:
            states: the result of `states`, from the checkpoint.
            ended: the result of `ending`, from the same checkpoint.

        Raises:
            CheckpointError: a callback rejects its state; the message names it.
        """
        before = {spec["use"]: spec for spec in ended.get("callbacks", ())}
        for callback, spec in zip(self.callbacks, self._specs, strict=True):
            if (state := states.get(callback.state_key)) is None:
                continue
            old = before.get(spec["use"], spec)
            changed = {name for name in spec if spec[name] != old.get(name)}
            given = {name: value for name, value in vars(callback).items() if name in changed}
            try:
                callback.load_state_dict(_tensors(state))
            except Exception as error:
                name = type(callback).__name__
                raise CheckpointError(
                    f"trainer.callbacks: {name} rejects its state in the checkpoint ({with_type(error)}): give it the "
                    "arguments that it had, or choose another output"
                ) from error
            vars(callback).update(given)

    def ending(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return the callbacks as configured, and the `reason` if one of them ended the run before its last step.

        `trainer.max_time` is not such a reason, because the run can continue. All ranks must call this method. They get
        the first rank's answer, because their clocks differ.
        """
        if not self.callbacks:
            return {}
        reason: str | None = trainer.strategy.broadcast(self._reason(trainer))
        return {"reason": reason, "callbacks": self._specs}

    def _reason(self, trainer: pl.Trainer) -> str | None:
        timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
        timed_out = any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)
        if not trainer.should_stop or trainer.global_step >= trainer.max_steps or timed_out:
            return None
        names = [type(callback).__name__ for callback in self.callbacks]
        for name, callback in zip(names, self.callbacks, strict=True):
            if message := getattr(callback, "stopping_reason_message", None):
                return f"{name}: {' '.join(str(message).split()).rstrip('.')}"
        return f"one of {', '.join(names)} requested a stop"

    def have_ended(self, ending: Mapping[str, Any]) -> str | None:
        """Return why these callbacks ended the run earlier, according to its checkpoint; None if they did not."""
        return ending.get("reason") if ending.get("callbacks") == self._specs else None


def _plain(value: Any, owner: str) -> Any:
    """Convert a state to plain values; tensors become mappings.

    Raises:
        TrainingError: a value is not plain; the message names the callback, `owner`.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() > LARGEST:
            raise TrainingError(
                f"trainer.callbacks: {owner} keeps {value.numel():,} values in a tensor, more than the {LARGEST:,} "
                "that a checkpoint stores: leave it out of state_dict"
            )
        return {"__tensor__": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {_key(key, owner): _plain(each, owner) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, owner) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in PLAIN:  # a class derived from one of them would be pickled by its name
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

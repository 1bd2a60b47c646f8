"""The whole configuration. It is parsed once, before any file is read or device is used: keys, types, then rules.

The rules of each part are in the part's own class; this file has the rules that involve several parts.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, TypeAdapter, ValidationError

from gptstar.choices import import_plugins
from gptstar.errors import ConfigError
from gptstar.evaluation.heads import HeadsConfig
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.recall import RecallConfig
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.fields import Role, in_words
from gptstar.keys import Inline, flatten, is_valid, nested, unknown_key, valid_keys
from gptstar.model.config import SOFTMAX_SCALES
from gptstar.model.positions import POSITIONS
from gptstar.training.hardware import Hardware
from gptstar.training.micro_batch import MicroBatches, micro_batches
from gptstar.training.optimizers import OPTIMIZERS
from gptstar.training.plan import Device, Memory, Workload
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record

Config = TypeVar("Config")

WORKERS_PER_CORE = 16
"""The most data-loading processes per core."""


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run: its recipe, its hardware, and its record."""

    recipe: Annotated[Recipe, Role.RESULT, Inline.KEYS]
    hardware: Annotated[Hardware, Role.MACHINE]
    record: Annotated[Record, Role.RECORD, Inline.KEYS]

    @classmethod
    def parse(cls, composed: DictConfig) -> Self:
        """Parse a composed configuration into typed values, without checking the machine; `check_here` does that.

        Raises:
            ConfigError: a key is unknown, a value has the wrong type, or it breaks a rule; the message names the key
                and the fix.
        """
        tree = _tree(composed)
        model, data = (each if isinstance(each, dict) else {} for each in (tree.get("model"), tree.get("data")))
        positions, length = POSITIONS.parse(model.get("positions", "alibi")), data.get("context_length")
        if model.get("n_ctx") is None and positions.needs_capacity:
            model = model | {"n_ctx": length}
        scale = SOFTMAX_SCALES.parse(model.get("softmax_scale", "none"))
        if isinstance(length, int) and (fitted := positions.trained_with(length)) != positions:
            model = model | {"positions": POSITIONS.describe(fitted)}
        if isinstance(length, int) and (scaled := scale.trained_with(length)) != scale:
            model = model | {"softmax_scale": SOFTMAX_SCALES.describe(scaled)}
        if model:
            tree["model"] = model
        return _parse(cls, tree)

    def __post_init__(self) -> None:
        if self.hardware.devices != "auto":
            self.check_devices()
        if self.record.reading.reads:
            self.record.reading.lengths(self.recipe.data.context_length)

    def check_devices(self) -> None:
        """Check the rules that depend on the number of devices.

        Raises:
            ConfigError: a step can't be divided among the devices, or an option needs another number.
        """
        sequences, devices = self.recipe.sequences_per_step, self.hardware.world_size
        if not self.recipe.optimizer.is_shardable and self.hardware.sharded:
            raise ConfigError(
                f"optimizer={OPTIMIZERS.name_of(self.recipe.optimizer)} can't update sharded parameters, but "
                "hardware.strategy=fsdp shards them over devices: use optimizer=adamw, or hardware=ddp"
            )
        if sequences % devices:
            raise ConfigError(
                f"batch_tokens={self.recipe.batch_tokens} is {sequences} sequences of "
                f"{self.recipe.data.context_length}, which can't be divided among {devices} devices: change one of them"
            )

    def check_here(self) -> Self:
        """Check that this machine has the devices, packages and files that the run needs.

        Raises:
            ConfigError: something is missing; the message names the key and a fix.
        """
        self.hardware.check_here()
        self.recipe.optimizer.check_here()
        self.record.check_here()
        self.check_devices()
        self._check_workers()
        return self

    def _check_workers(self) -> None:
        cores, workers = os.cpu_count() or 1, self.recipe.data.loader_workers
        if workers > WORKERS_PER_CORE * cores:
            raise ConfigError(
                f"data.loader_workers={workers} is more than {WORKERS_PER_CORE} processes per core ({cores} cores): "
                "give fewer; 0 is enough for shards on a local disk"
            )

    def workload(self, *, on_gpu: bool) -> Workload:
        """Return the work of a device in a step, which determines its memory."""
        return Workload.planned(self.recipe, self.hardware, on_gpu=on_gpu)

    def micro_batches(self, device: Device) -> MicroBatches:
        """Return the micro-batches into which a device splits its sequences of a step."""
        return micro_batches(self.hardware, self.workload(on_gpu=device.is_gpu), device)

    def memory(self, device: Device) -> Memory:
        """Return the peak memory of a device in a step."""
        batches = self.micro_batches(device)
        return self.workload(on_gpu=device.is_gpu).memory(batches.size, batches.logits_at_once)


@dataclass(frozen=True)
class EvaluateConfig:
    """The configuration of an evaluation of one checkpoint, or of several in a length study.

    Attributes:
        checkpoint: a checkpoint, a run directory or an exported Hugging Face folder; several for a length study.
        evaluation: the kind of evaluation, with its settings.
        output: the folder for the results.
        tokenizer: a `tokenizers` JSON, for a checkpoint without a tokenizer.
        shards: the text for a length study; by default the checkpoint's training data.
        plugins: modules to import, which register the user's own choices.
    """

    checkpoint: Path | tuple[Path, ...]
    output: Path
    tokenizer: Path | None
    shards: str | None
    hardware: Hardware
    evaluation: Annotated[TasksConfig | LengthConfig | HeadsConfig | RecallConfig, Field(discriminator="study")]
    plugins: tuple[str, ...] = ()

    @classmethod
    def parse(cls, composed: DictConfig) -> Self:
        """Parse a composed configuration into typed values.

        Raises:
            ConfigError: for the same reasons as in `TrainConfig.parse`.
        """
        return _parse(cls, _tree(composed))

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ConfigError("checkpoint=[] names no checkpoint: give one")
        if len(self.checkpoints) > 1 and isinstance(self.evaluation, HeadsConfig):
            raise ConfigError("checkpoint names several: evaluation=heads takes one (-m checkpoint=A,B runs each)")
        if isinstance(self.evaluation, TasksConfig):
            if len(self.checkpoints) > 1:
                raise ConfigError(
                    "checkpoint names several: tasks take one at a time (-m checkpoint=A,B runs each; "
                    "`gptstar compare` sets two results against each other)"
                )
            for key, value in (("every_n_steps", self.evaluation.every_n_steps), ("device", self.evaluation.device)):
                if value is not None:
                    raise ConfigError(f"evaluation.{key} is for train.py, for evaluation during training: leave it out")

    def check_here(self) -> Self:
        """Check that this machine has the device and the files.

        Raises:
            ConfigError: one is missing.
        """
        self.hardware.check_here()
        if isinstance(self.evaluation, TasksConfig):
            self.evaluation.check_here()
        return self

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The checkpoints to evaluate, at least one."""
        return self.checkpoint if isinstance(self.checkpoint, tuple) else (self.checkpoint,)


def _tree(composed: DictConfig) -> dict[str, Any]:
    """Import the user's plugins, and return the configuration as plain values."""
    try:
        tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).strip().partition("\n")[0]) from error
    assert isinstance(tree, dict)
    plugins = plugin_names(tree.get("plugins"))
    import_plugins(plugins)
    return {str(key): value for key, value in tree.items()} | {"plugins": plugins}


def _parse(cls: type[Config], tree: dict[str, Any]) -> Config:
    valid = valid_keys(cls)
    takes = OPEN_ENDED in valid
    for key in flatten({key: value for key, value in tree.items() if key != OPEN_ENDED or not takes}):
        if not is_valid(key, valid):
            raise ConfigError(unknown_key(key, valid))
    if OPEN_ENDED in tree:
        if not isinstance(tree[OPEN_ENDED] or {}, dict):
            raise ConfigError(f"{OPEN_ENDED}={tree[OPEN_ENDED]} is not a group of keys: give {OPEN_ENDED}.KEY=VALUE")
        tree[OPEN_ENDED] = {name: value for name, value in (tree[OPEN_ENDED] or {}).items() if value is not None}
    try:
        return TypeAdapter(cls).validate_python(nested(cls, tree))
    except ValidationError as error:
        first = error.errors()[0]
        names = {name for key in valid for name in key.split(".")}
        where = [str(part) for part in first["loc"]]
        parts = (
            part for part, before in zip(where, ["", *where], strict=False) if part in names or before == "corpora"
        )
        key = ".".join(parts)  # without the union branches that pydantic adds
        if first["type"] == "missing":
            raise ConfigError(f"{key} has no value: give {key}=VALUE") from error
        raise ConfigError(f"{key}={first['input']}{in_words(first)}") from error


OPEN_ENDED = "trainer"
"""The group of Lightning's own keys, which are checked against the signature of its Trainer."""


def plugin_names(value: Any) -> tuple[str, ...]:
    """Read the modules in `plugins`: a list, or a single name.

    Raises:
        ConfigError: the value is neither.
    """
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"plugins={value} is not a list of modules: give plugins=[package.module]")
    return tuple(names)

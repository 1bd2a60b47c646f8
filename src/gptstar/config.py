"""The whole configuration, parsed once: unknown keys, types, then rules, before a file is read or a device is touched.

Each part's own rules stand in the part's own class; here are those that join parts.
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
"""Processes that read data, at most."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run: what shapes its result, where it computes, and what it records."""

    recipe: Annotated[Recipe, Role.RESULT, Inline.KEYS]
    hardware: Annotated[Hardware, Role.MACHINE]
    record: Annotated[Record, Role.RECORD, Inline.KEYS]

    @classmethod
    def parse(cls, composed: DictConfig) -> Self:
        """Typed values from a composed configuration. The machine is not looked at: `check_here` does that.

        Raises:
            ConfigError: an unknown key, a value of the wrong type, or one that breaks a rule; names key and cure.
        """
        tree = _tree(composed)
        model, data = (each if isinstance(each, dict) else {} for each in (tree.get("model"), tree.get("data")))
        positions, length = POSITIONS.parse(model.get("positions", "alibi")), data.get("context_length")
        if model.get("n_ctx") is None and positions.needs_capacity:
            model = model | {"n_ctx": length}
        scale = SOFTMAX_SCALES.parse(model.get("softmax_scale", "none"))
        if isinstance(length, int) and (told := positions.trained_with(length)) != positions:
            model = model | {"positions": POSITIONS.describe(told)}
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
        """Check what depends on how many devices there are.

        Raises:
            ConfigError: a step or an option does not fit their number.
        """
        sequences, devices = self.recipe.sequences_per_step, self.hardware.world_size
        if not self.recipe.optimizer.is_shardable and self.hardware.sharded:
            raise ConfigError(
                f"optimizer={OPTIMIZERS.name_of(self.recipe.optimizer)} steps whole parameters, and "
                "hardware.strategy=fsdp splits them over devices: use optimizer=adamw, or hardware=ddp"
            )
        if sequences % devices:
            raise ConfigError(
                f"batch_tokens={self.recipe.batch_tokens} is {sequences} sequences of "
                f"{self.recipe.data.context_length}, which {devices} devices do not divide: change one"
            )

    def check_here(self) -> Self:
        """See that this machine can run it: its devices, packages and files.

        Raises:
            ConfigError: it can't; names the key and what to give instead.
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
                f"data.loader_workers={workers} is more than {WORKERS_PER_CORE} processes for each of {cores} cores: "
                "give fewer; 0 is enough for shards on a local disk"
            )

    def workload(self, *, on_gpu: bool) -> Workload:
        """What a device computes, as far as its memory depends on it."""
        return Workload.planned(self.recipe, self.hardware, on_gpu=on_gpu)

    def micro_batches(self, device: Device) -> MicroBatches:
        """How a device splits its sequences of a step."""
        return micro_batches(self.hardware, self.workload(on_gpu=device.is_gpu), device)

    def memory(self, device: Device) -> Memory:
        """What a device holds at the height of a step."""
        batches = self.micro_batches(device)
        return self.workload(on_gpu=device.is_gpu).memory(batches.size, batches.logits_at_once)


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation of a checkpoint, or of several for a study of context length.

    Attributes:
        checkpoint: a checkpoint, a run directory or an exported Hugging Face folder.
        output: where the results go.
        tokenizer: a `tokenizers` JSON, for a checkpoint that holds none.
        shards: the text for a study of context length; what the checkpoint was trained on, unless given.
        plugins: modules to import, which register choices of the user's own.
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
        """Typed values from a composed configuration.

        Raises:
            ConfigError: as `TrainConfig.parse`.
        """
        return _parse(cls, _tree(composed))

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ConfigError("checkpoint=[] names none")
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
                    raise ConfigError(f"evaluation.{key} is for train.py, which evaluates as it goes: leave it out")

    def check_here(self) -> Self:
        """See that this machine has the device and the files.

        Raises:
            ConfigError: it has not.
        """
        self.hardware.check_here()
        if isinstance(self.evaluation, TasksConfig):
            self.evaluation.check_here()
        return self

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """One or more."""
        return self.checkpoint if isinstance(self.checkpoint, tuple) else (self.checkpoint,)


def _tree(composed: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, once the modules of the user's own choices are imported."""
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
        key = ".".join(parts)  # without the branches of unions that pydantic adds
        if first["type"] == "missing":
            raise ConfigError(f"{key} has no value: give {key}=VALUE") from error
        raise ConfigError(f"{key}={first['input']}{in_words(first)}") from error


OPEN_ENDED = "trainer"
"""The group of Lightning's own keys, which are checked against its Trainer."""


def plugin_names(value: Any) -> tuple[str, ...]:
    """Read the modules that `plugins` names: a list, or one by itself.

    Raises:
        ConfigError: it is neither.
    """
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"plugins={value} is not a list of modules: give plugins=[package.module]")
    return tuple(names)

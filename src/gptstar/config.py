"""The whole configuration of a run, parsed once: unknown keys, types, then rules, before a file is read.

Each part's own rules are beside the code that it configures; here are those that join parts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, TypeAdapter, ValidationError

from gptstar.checkpoint.kept import LAST
from gptstar.data.config import DataConfig
from gptstar.errors import ConfigError
from gptstar.evaluation.length.config import LengthConfig
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.fields import annotations, in_words
from gptstar.model import GPTConfig
from gptstar.model.positions import POSITIONS
from gptstar.training.curriculum import CurriculumConfig
from gptstar.training.hardware import HardwareConfig
from gptstar.training.micro_batch import MicroBatches, micro_batches
from gptstar.training.optimizer import OptimizerConfig
from gptstar.training.options import check_trainer_options
from gptstar.training.plan import Device, Memory, Workload
from gptstar.training.schedule import ScheduleConfig
from gptstar.training.tracker import TrackerConfig

Config = TypeVar("Config")

RESUME_WORDS = ("auto", "never")

DATA_SETTINGS = ("context_length", "block_tokens", "shuffle_tokens", "windows", "attention")
"""Keys of `data` that a run keeps to its end."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: of the run.
        seed: of initial weights, data order and dropout.
        total_steps: optimizer steps in all.
        batch_tokens: tokens an optimizer step.
        checkpoint_every, validate_every, log_every: in steps.
        checkpoint_keep: of the newest checkpoints; the best is kept too.
        on_nonfinite: `stop`, or `skip` a step whose loss or gradient is not finite.
        jobs_at_once: of a sweep on one machine.
        resume: `auto` goes on from the run directory's last checkpoint if there is one; a path starts from that
            checkpoint; `never` refuses a directory that holds a run.
        branch_from: a checkpoint to start from under another schedule, which must match this run's up to that step.
        evaluation: on tasks of the harness, every so many steps.
        report: at the end, compare with a bigram model, read beyond the training context, and sample.
        reading: at the end, a study of context length, where it names lengths.
        output: the run directory.
        trainer: options passed through to Lightning's Trainer.
    """

    name: str
    seed: int
    total_steps: int
    batch_tokens: int
    checkpoint_every: int
    checkpoint_keep: int
    validate_every: int
    log_every: int
    on_nonfinite: Literal["stop", "skip"]
    resume: str
    branch_from: Path | None
    jobs_at_once: int
    report: bool
    reading: LengthConfig
    output: Path
    model: GPTConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    curriculum: CurriculumConfig
    hardware: HardwareConfig
    tracker: TrackerConfig
    evaluation: TasksConfig
    trainer: dict[str, Any]

    @classmethod
    def parse(cls, composed: DictConfig) -> Self:
        """Typed values from a composed configuration.

        Raises:
            ConfigError: an unknown key, a value of the wrong type, or one that breaks a rule; names key and cure.
        """
        model: Any = OmegaConf.to_container(composed.model)
        if POSITIONS.parse(model["positions"]).needs_capacity and OmegaConf.select(composed, "model.n_ctx") is None:
            capacity = OmegaConf.select(composed, "data.context_length")
            composed = OmegaConf.merge(composed, {"model": {"n_ctx": capacity}})  # type: ignore[assignment]
        return _parse(cls, composed)

    def __post_init__(self) -> None:
        steps = ("total_steps", "checkpoint_every", "validate_every", "log_every")
        for name in (*steps, "batch_tokens", "checkpoint_keep", "jobs_at_once"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is below 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} is negative or beyond 2**63")
        if self.total_steps * self.batch_tokens >= 2**62:
            raise ConfigError(f"total_steps={self.total_steps} is more than can be counted")
        self.model.check_length("data.context_length", self.data.context_length)
        if self.batch_tokens % self.data.block_tokens:
            raise ConfigError(
                f"batch_tokens={self.batch_tokens} is not a multiple of data.block_tokens={self.data.block_tokens}: "
                "a step reads whole blocks; change one of them"
            )
        if self.sequences_per_step % self.hardware.world_size:
            raise ConfigError(
                f"batch_tokens={self.batch_tokens} is {self.sequences_per_step} sequences of "
                f"{self.data.context_length}, which {self.hardware.world_size} devices do not divide: change one"
            )
        if self.evaluation.every_n_steps is not None and self.hardware.sharded:
            raise ConfigError(
                "evaluation.every_n_steps needs the whole model on each device, and hardware.strategy=fsdp splits it: "
                "leave it out, and give checkpoints to evaluate.py"
            )
        if self.optimizer.algorithm == "adamw_8bit" and self.hardware.sharded:
            raise ConfigError(
                "optimizer=adamw_8bit steps whole parameters, and hardware.strategy=fsdp has parts, each with its own "
                "part of AdamW's moments: use optimizer=adamw, or hardware=ddp"
            )
        self.schedule.resolved(self.total_steps)
        self.curriculum.resolved(self.data.context_length, self.total_steps)
        self.curriculum.check_end(max(self.total_steps, self.schedule.decay_until or 0))
        if self.evaluation.every_n_steps is not None and self.evaluation.cache is not None:
            raise ConfigError("evaluation.cache can't be used during training: leave it out")
        if self.branch_from is not None and self.resume != "auto":
            raise ConfigError(f"branch_from={self.branch_from} and resume={self.resume}: give one of them")
        began = (self.output / LAST).exists()  # then it goes on from its own
        if self.branch_from is not None and not self.branch_from.exists() and not began:
            raise ConfigError(f"branch_from={self.branch_from} is no checkpoint that exists")
        if self.resume not in RESUME_WORDS and not Path(self.resume).exists():
            raise ConfigError(f"resume={self.resume} is neither auto, never, nor a checkpoint that exists")
        if self.reading.reads:
            self.reading.lengths(self.data.context_length)
        check_trainer_options(self.trainer)

    @property
    def sequences_per_step(self) -> int:
        """Sequences of an optimizer step, on all devices."""
        return self.batch_tokens // self.data.context_length

    @property
    def sequences_per_device(self) -> int:
        """Sequences of an optimizer step on each device."""
        return self.sequences_per_step // self.hardware.world_size

    def workload(self, *, on_gpu: bool) -> Workload:
        """What a device computes, as far as its memory depends on it."""
        return Workload.planned(self.model, self.data.context_length, self.hardware, self.optimizer.algorithm, on_gpu)

    def micro_batches(self, device: Device) -> MicroBatches:
        """How a device splits its sequences of a step."""
        return micro_batches(self.hardware, self.workload(on_gpu=device.is_gpu), self.sequences_per_device, device)

    def memory(self, device: Device) -> Memory:
        """What a device holds at the height of a step."""
        batches = self.micro_batches(device)
        return self.workload(on_gpu=device.is_gpu).memory(batches.size, batches.logits_at_once)

    def settings(self) -> dict[str, Any]:
        """What shapes the result, as flat dotted keys: a run may only go on under the same."""
        shaping = {
            "seed": self.seed,
            "batch_tokens": self.batch_tokens,
            "model": self.model.as_dict(),
            "data": {key: getattr(self.data, key) for key in DATA_SETTINGS},
            "optimizer": asdict(self.optimizer.resolved(self.hardware.resolved_precision())),
            "schedule": asdict(self.schedule.resolved(self.total_steps)),
            "curriculum": asdict(self.curriculum.resolved(self.data.context_length, self.total_steps)),
            "hardware": {"precision": self.hardware.resolved_precision()},
        }
        return flatten(shaping)


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation of a checkpoint, or of several for a study of context length.

    Attributes:
        checkpoint: a checkpoint, a run directory or an exported Hugging Face folder.
        output: where the results go.
        tokenizer: a `tokenizers` JSON, for a checkpoint that holds none.
        shards: the text for a study of context length; what the checkpoint was trained on, unless given.
    """

    checkpoint: Path | tuple[Path, ...]
    output: Path
    tokenizer: Path | None
    shards: str | None
    hardware: HardwareConfig
    evaluation: Annotated[TasksConfig | LengthConfig, Field(discriminator="study")]

    @classmethod
    def parse(cls, composed: DictConfig) -> Self:
        """Typed values from a composed configuration.

        Raises:
            ConfigError: as `TrainConfig.parse`.
        """
        return _parse(cls, composed)

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise ConfigError("checkpoint=[] names none")
        if isinstance(self.evaluation, TasksConfig):
            if len(self.checkpoints) > 1:
                raise ConfigError(
                    "checkpoint names several: tasks take one at a time (-m checkpoint=A,B runs each; "
                    "`gptstar compare` sets two results against each other)"
                )
            if self.evaluation.every_n_steps is not None:
                raise ConfigError("evaluation.every_n_steps is for train.py, which evaluates as it goes: leave it out")

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """One or more."""
        return self.checkpoint if isinstance(self.checkpoint, tuple) else (self.checkpoint,)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"n_heads": 8}}` → `{"model.n_heads": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def valid_keys(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration; `*` stands for a name that the user gives."""
    keys: list[str] = []
    for name, nested, marks in annotations(cls):
        key = f"{prefix}{name}"
        if POSITIONS in marks:  # which knows what keys a kind has
            keys.append(f"{key}.*")
        if get_origin(nested) is dict and is_dataclass(get_args(nested)[1]):
            nested, key = get_args(nested)[1], f"{key}.*"
        options = get_args(nested) if get_origin(nested) in (Union, UnionType) else (nested,)
        groups = [option for option in options if isinstance(option, type) and is_dataclass(option)]
        keys += [each for group in groups for each in valid_keys(group, f"{key}.")] or [key]
    return list(dict.fromkeys(keys))


def is_valid(key: str, valid: Sequence[str]) -> bool:
    """Whether a dotted key is among those of a configuration."""
    return any(key == each or ("*" in each and fnmatchcase(key, each)) for each in valid)


def _parse(cls: type[Config], composed: DictConfig) -> Config:
    try:
        tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).strip().partition("\n")[0]) from error
    assert isinstance(tree, dict)
    valid = valid_keys(cls)
    open_ended = [key for key in valid if get_type_hints(cls).get(key) == dict[str, Any]]
    for key in flatten({str(key): value for key, value in tree.items() if key not in open_ended}):
        if not is_valid(key, valid):
            raise ConfigError(unknown_key(key, valid))
    for key in open_ended:
        if not isinstance(tree.get(key) or {}, dict):
            raise ConfigError(f"{key}={tree[key]} is no group of keys: give {key}.KEY=VALUE")
        tree[key] = {name: value for name, value in (tree.get(key) or {}).items() if value is not None}
    try:
        return TypeAdapter(cls).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        names = {name for key in valid for name in key.split(".")}
        where = [str(part) for part in first["loc"]]
        parts = (
            part for part, before in zip(where, ["", *where], strict=False) if part in names or before == "corpora"
        )
        key = ".".join(parts)  # without the branches of unions that pydantic adds
        given = "" if first["type"] == "missing" else f"={first['input']}"
        raise ConfigError(f"{key}{given}{in_words(first)}") from error


def unknown_key(key: str, valid: Sequence[str]) -> str:
    """The message for a key that does not exist, with the nearest that does."""
    if is_valid(key, valid):
        return f"{key} is a key that is not set so far: give it as +{key}=VALUE"
    near = get_close_matches(key, valid, 1, cutoff=0.5)
    same_leaf = [other for other in valid if other.rpartition(".")[2] == key.rpartition(".")[2]]
    suggestion = " or ".join(same_leaf or near)
    return f"{key} is no key of the configuration" + (f": did you mean {suggestion}?" if suggestion else "")

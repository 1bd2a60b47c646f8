"""The configuration of an evaluation on tasks."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from gptstar.errors import ConfigError
from gptstar.fields import Before, Count, NotNegative, Seed32, check_ranges

SUITE = ("lambada_openai", "wikitext", "piqa", "hellaswag", "winogrande")
"""The tasks with published results of GPT*."""

CONTEXT_LENGTH = 1024
LONGER_CONTEXTS = {"wikitext": 2048}
"""Context lengths of particular tasks, as published."""


@dataclass(frozen=True)
class TasksConfig:
    """Tasks of lm-evaluation-harness, and how to score them.

    Attributes:
        study: the kind of evaluation, set by `evaluation=harness`.
        tasks: names of the harness's tasks, groups or tags.
        limit: the number of items of each task to score, from the first on; for trials only.
        include_path: a folder with definitions of the user's own tasks in the harness's format (`TASK.yaml`).
        data_dir: a folder with a file for each task, in the columns of its dataset on the Hub; by default the Hub.
        context_length: the most tokens that the model reads in every task; by default 1,024, and 2,048 for WikiText, or
            the number of learned positions if that is smaller.
        num_fewshot: the number of few-shot examples; by default each task's own. As in the harness, a task that
            defines 0 keeps 0.
        fewshot_as_multiturn: an option for chat templates, which no model here has; it must be false.
        gen_kwargs: settings of generation that override each task's own, such as `{max_gen_toks: 32}`.
        metadata: options that the harness passes to the code of tasks that generate their items, such as
            `{tokenizer: FOLDER}` for RULER.
        predict_only: whether to record the model's answers only, without metrics.
        dtype: the type of matrix products; below float32, scores depend on the other requests in the batch.
        batch_tokens: the number of tokens to read at once; by default 1,024 on a CPU, and as many as fit on a GPU.
        batch_size: the most rows to read at once.
        seed: the seed of few-shot examples and of sampled texts.
        cache: a folder that stores scores, so that an interrupted evaluation can continue.
        overlap: the output of `gptstar data overlap --json`; adds scores over items that are not in the training text.
        every_n_steps: the number of steps between the checkpoints of a training run that are evaluated; the last one is
            always evaluated. For train.py only.
        device: the device that evaluates the checkpoints of a training run, such as `cpu` or `cuda:1`; by default a GPU
            that the run does not use, or else the CPU. For train.py only.
    """

    study: Literal["harness"] = "harness"
    tasks: tuple[str, ...] = SUITE
    limit: Count | None = None
    include_path: Path | None = None
    data_dir: Path | None = None
    context_length: Count | None = None
    num_fewshot: NotNegative | None = None
    fewshot_as_multiturn: Annotated[bool, Before(False)] = False
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    predict_only: Annotated[bool, Before(False)] = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_tokens: Count | None = None
    batch_size: Count | None = None
    seed: Seed32 = 1234
    cache: Path | None = None
    overlap: Path | None = None
    every_n_steps: Count | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation.")
        if not self.tasks:
            raise ConfigError("evaluation.tasks is empty: name some, such as [piqa,winogrande]")
        if self.fewshot_as_multiturn:
            raise ConfigError(
                "evaluation.fewshot_as_multiturn=true needs a chat template, which no model here has: leave it out"
            )
        if self.predict_only and self.every_n_steps is not None:
            raise ConfigError(
                "evaluation.predict_only=true computes no metrics, but evaluation.every_n_steps needs them: leave one "
                "out"
            )

    def check_here(self) -> None:
        """Check that the named files and the device exist.

        Raises:
            ConfigError: one does not exist.
        """
        for key, path in (("include_path", self.include_path), ("data_dir", self.data_dir)):
            if path is not None and not path.is_dir():
                raise ConfigError(f"evaluation.{key}={path} is not a folder: correct the path")
        if self.overlap is not None and not self.overlap.is_file():
            raise ConfigError(f"evaluation.overlap={self.overlap} is not a file: correct the path")
        if self.device is not None:
            self._check_device(self.device)

    def _check_device(self, name: str) -> None:
        match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
        if not match:
            raise ConfigError(f"evaluation.device={name} is neither cpu nor a GPU: give cpu, or one such as cuda:1")
        if name != "cpu" and int(match[1] or 0) >= (there := torch.cuda.device_count()):
            raise ConfigError(
                f"evaluation.device={name} does not exist here: PyTorch sees {there or 'no'} GPUs; give another, or cpu"
            )

    def length_for(self, task: str, n_ctx: int | None) -> int:
        """Return the most tokens that a model reads in a task.

        Args:
            task: the name of the task.
            n_ctx: the number of the model's learned positions; None for other kinds of positions.

        Raises:
            ConfigError: the configured length exceeds the learned positions.
        """
        if self.context_length is None:
            published = LONGER_CONTEXTS.get(task, CONTEXT_LENGTH)
            return min(published, n_ctx or published)
        if n_ctx is not None and self.context_length > n_ctx:
            raise ConfigError(
                f"evaluation.context_length={self.context_length} exceeds the model's n_ctx={n_ctx}; learned positions "
                f"can't extrapolate: give at most {n_ctx}"
            )
        return self.context_length

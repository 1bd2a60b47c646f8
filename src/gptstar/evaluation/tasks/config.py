"""What to evaluate on, and how."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from gptstar.errors import ConfigError
from gptstar.fields import Before, Count, NotNegative, Seed32, check_ranges

SUITE = ("lambada_openai", "wikitext", "piqa", "hellaswag", "winogrande")
"""What GPT* was published with."""

CONTEXT_LENGTH = 1024
LONGER_CONTEXTS = {"wikitext": 2048}
"""As published."""


@dataclass(frozen=True)
class TasksConfig:
    """Tasks of lm-evaluation-harness, and how to score them.

    Attributes:
        study: what tells this apart from other evaluations.
        tasks: their names in the harness; groups and tags of it too.
        limit: the first so many items of each task only, to try things out.
        include_path: a folder with definitions of the user's own tasks, as the harness reads them (`TASK.yaml`).
        data_dir: a folder with a file for each task, in the columns of its dataset on the Hub; the Hub unless given.
        context_length: tokens read at most, for every task; 1,024 and for WikiText 2,048 unless given, or what learned
            positions hold.
        num_fewshot: examples before each item; what each task says unless given. A task that says 0 keeps 0, as in the
            harness.
        fewshot_as_multiturn: of chat templates, which no model here has: false.
        gen_kwargs: how texts are written, over what each task says: `{max_gen_toks: 32}`.
        metadata: what the harness hands to the code of tasks that make their items: `{tokenizer: FOLDER}` for RULER.
        predict_only: keep what the model answers, and compute no metrics.
        dtype: of the products. In less than float32 scores depend on what else is in the batch.
        batch_tokens: tokens to read at once; by default 1,024 on a CPU, and on a GPU what its memory holds.
        batch_size: rows read at once at most.
        seed: of the choice of few-shot examples, and of texts that are drawn.
        cache: a folder that keeps scores, so that what was interrupted goes on.
        overlap: what `gptstar data overlap --json` wrote: scores also for the items that the training text lacks.
        every_n_steps: of a training run, between the checkpoints that are evaluated, and the last one; train.py only.
        device: where a training run's checkpoints are evaluated, such as `cpu` or `cuda:1`; unless given, on a GPU that
            the run leaves free, or else on the CPU. train.py only.
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
                "evaluation.fewshot_as_multiturn=true needs a chat template, as in the harness, and no model here has "
                "one: leave it out"
            )
        if self.predict_only and self.every_n_steps is not None:
            raise ConfigError(
                "evaluation.predict_only=true computes no metrics, which evaluation.every_n_steps logs: leave one out"
            )

    def check_here(self) -> None:
        """See that the files exist.

        Raises:
            ConfigError: one does not.
        """
        for key, path in (("include_path", self.include_path), ("data_dir", self.data_dir)):
            if path is not None and not path.is_dir():
                raise ConfigError(f"evaluation.{key}={path} is not a folder")
        if self.overlap is not None and not self.overlap.is_file():
            raise ConfigError(f"evaluation.overlap={self.overlap} is not a file")
        if self.device is not None:
            self._check_device(self.device)

    def _check_device(self, name: str) -> None:
        match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
        if not match:
            raise ConfigError(f"evaluation.device={name} is neither cpu nor a GPU such as cuda:1")
        if name != "cpu" and int(match[1] or 0) >= (there := torch.cuda.device_count()):
            raise ConfigError(f"evaluation.device={name} is not here: PyTorch sees {there or 'no'} GPUs")

    def length_for(self, task: str, n_ctx: int | None) -> int:
        """Tokens read at most in a task, by a model whose learned positions, if it has them, hold `n_ctx`.

        Raises:
            ConfigError: more is asked for than learned positions hold.
        """
        if self.context_length is None:
            published = LONGER_CONTEXTS.get(task, CONTEXT_LENGTH)
            return min(published, n_ctx or published)
        if n_ctx is not None and self.context_length > n_ctx:
            raise ConfigError(
                f"evaluation.context_length={self.context_length} exceeds the learned positions' n_ctx={n_ctx}, beyond "
                f"which the model is undefined: give at most {n_ctx}"
            )
        return self.context_length

"""Per-task settings: the user's options for each task, and a model that uses each task's own context length."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM
from lm_eval.api.task import Task

from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.config import TasksConfig

UNSAFE = "runs code that the model writes, which is not supported here: use lm_eval with --confirm_run_unsafe_code"


def set_options(task: Task, config: TasksConfig) -> None:
    """Apply the user's options to a task, as the harness's `simple_evaluate` does.

    Raises:
        ConfigError: the task can't be evaluated here.
    """
    name = task.config.task
    for is_so, problem in (
        (getattr(task, "UNSAFE_CODE", False), UNSAFE),
        (getattr(task, "MULTIMODAL", False), "has pictures or sound, but models here read text only"),
    ):
        if is_so:
            raise ConfigError(f"evaluation.tasks: {name} {problem}")
    if task.OUTPUT_TYPE == "generate_until" and config.gen_kwargs:
        task.set_config(key="generation_kwargs", value=dict(config.gen_kwargs), update=True)
    if config.predict_only:
        task.override_metric(metric_name="bypass")
    own = task.get_config("num_fewshot")
    if own is None or (config.num_fewshot is not None and own != 0):  # a task that defines 0 keeps it
        task.set_config(key="num_fewshot", value=config.num_fewshot or 0)
    task.set_fewshot_seed(seed=config.seed)


class ByTask(LM):  # type: ignore[misc]  # the harness has no types
    """A harness model that forwards each task's requests to the task's own model."""

    def __init__(self, models: Mapping[str, LM | CachingLM]) -> None:
        super().__init__()
        self._models = models

    def loglikelihood(self, requests: Sequence[Instance]) -> list[Any]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        return self._answers("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[Any]:
        """Return the log-likelihood of each whole text."""
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[Any]:
        """Return the generated continuation of each text."""
        return self._answers("generate_until", requests)

    def _answers(self, kind: str, requests: Sequence[Instance]) -> list[Any]:
        numbers_of: defaultdict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            numbers_of[request.task_name].append(number)
        answers: dict[int, Any] = {}
        for task, numbers in numbers_of.items():
            answered = getattr(self._models[task], kind)([requests[number] for number in numbers])
            answers |= zip(numbers, answered, strict=True)
        return [answers[number] for number in range(len(requests))]

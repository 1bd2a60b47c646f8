"""Tasks as the harness would be told of them, and a model that reads each in its own context length."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM
from lm_eval.api.task import Task

from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.config import TasksConfig

UNSAFE = "runs programs that the model writes, which is not offered here: lm_eval has --confirm_run_unsafe_code for it"


def set_options(task: Task, config: TasksConfig) -> None:
    """Tell a task what the user chose, as the harness's `simple_evaluate` does.

    Raises:
        ConfigError: the task can't be evaluated here.
    """
    name = task.config.task
    for is_so, problem in (
        (getattr(task, "UNSAFE_CODE", False), UNSAFE),
        (getattr(task, "MULTIMODAL", False), "has pictures or sound, and models here read text"),
    ):
        if is_so:
            raise ConfigError(f"evaluation.tasks: {name} {problem}")
    if task.OUTPUT_TYPE == "generate_until" and config.gen_kwargs:
        task.set_config(key="generation_kwargs", value=dict(config.gen_kwargs), update=True)
    if config.predict_only:
        task.override_metric(metric_name="bypass")
    own = task.get_config("num_fewshot")
    if own is None or (config.num_fewshot is not None and own != 0):  # a task that says 0 keeps it
        task.set_config(key="num_fewshot", value=config.num_fewshot or 0)
    task.set_fewshot_seed(seed=config.seed)


class ByTask(LM):  # type: ignore[misc]  # the harness has no types
    """Has each task's requests answered by the task's own model."""

    def __init__(self, models: Mapping[str, LM | CachingLM]) -> None:
        super().__init__()
        self._models = models

    def loglikelihood(self, requests: Sequence[Instance]) -> list[Any]:
        """The log-likelihood of each continuation, and whether greedy decoding would have written it."""
        return self._answers("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[Any]:
        """The log-likelihood of each whole text."""
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[Any]:
        """Each text's continuation."""
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

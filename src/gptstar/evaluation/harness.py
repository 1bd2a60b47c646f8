"""The adapter of our model to lm-evaluation-harness, which requests log-likelihoods and continuations of texts."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from gptstar.checkpoint.read import load
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError, in_one_line
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.scoring import Dtype, Scorable, Scorer
from gptstar.evaluation.tasks.team import OnResults, Team, no_progress
from gptstar.evaluation.tasks.worker import Prompt, Worker
from gptstar.inference.sampling import Sampling

MAX_NEW = 256
"""The number of generated tokens if a task does not state it, as for the harness's own models."""

NEUTRAL: dict[str, object] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "length_penalty": 1,
    "early_stopping": False,
    "diversity_penalty": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "min_p": 0,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "use_cache": True,
}
"""Unsupported settings of generation, each with the value that has no effect."""


def lm(
    path: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
    batch_tokens: int | None = None,
) -> "HarnessModel":
    """Load a checkpoint for lm-evaluation-harness: `lm_eval.simple_evaluate(gptstar.lm(path), tasks=["piqa"])`.

    Scores equal those of `evaluate.py`, except that `evaluate.py` gives WikiText a context of 2,048 tokens.

    Args:
        path: a checkpoint, a run directory, of which the best checkpoint is used, or an exported Hugging Face folder.
        context_length: the most tokens to read; by default 1,024, or the number of learned positions if smaller.
        device: PyTorch's name of the device; `auto` uses a GPU if there is one.
        dtype: the type of matrix products.
        batch_tokens: the number of tokens to read at once; by default 1,024 on a CPU, and as many as fit on a GPU.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or unsafe, or has no tokenizer; the message names the file.
        ConfigError: `context_length` exceeds the learned positions, or the device or type does not exist.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"dtype={dtype} is not one of {', '.join(get_args(Dtype))}")
    model = load(path)
    if model.tokenizer is None:
        raise CheckpointError(f"{Path(path)} holds no tokenizer, which tasks need: import it with --tokenizer FILE")
    tokenizer = Tokenizer(model.tokenizer)
    length = TasksConfig(context_length=context_length).length_for("any", model.config.n_ctx)
    try:
        model = model.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:  # PyTorch's errors for a missing device
        raise ConfigError(f"device={device}: {in_one_line(error)}") from error
    worker = Worker(Scorer(model, dtype=dtype, batch_tokens=batch_tokens), tokenizer)
    about = {"model_num_parameters": model.config.n_params, "model_dtype": dtype}
    return HarnessModel(Team(worker), tokenizer, lambda _: no_progress, length, about)


def n_to_write(task: Task) -> int:
    """Return the most tokens that a task generates per item; 0 if it generates no text.

    Raises:
        ConfigError: the task needs an unsupported setting of generation.
    """
    settings = task.config.generation_kwargs if task.OUTPUT_TYPE == "generate_until" else None
    return writing_of(settings, task.config.task)[0] if settings is not None else 0


def writing_of(settings: dict[str, Any], task: str) -> tuple[int, tuple[str, ...], Sampling]:
    """Translate a task's `generation_kwargs` to the number of new tokens, the stop strings, and the sampling.

    Raises:
        ConfigError: a setting is unsupported and may change a text, or it has an invalid value.
    """
    try:
        choices = {key: value for key, value in normalize_gen_kwargs(settings, MAX_NEW).items() if value is not None}
        n_new, until, is_drawn = choices.pop("max_gen_toks"), choices.pop("until"), choices.pop("do_sample")
        if n_new < 1 or not isinstance(is_drawn, bool) or not all(isinstance(text, str) for text in until if text):
            given = f"max_gen_toks={n_new}, until={until}, do_sample={is_drawn}"
            raise ValueError(f"{given}: give a number of 1 or more, strings, and true or false")
        drawn = {key: choices.pop(key) for key in ("temperature", "top_k", "top_p", "typical_p") if key in choices}
        if is_drawn:
            drawn |= {"temperature": float(drawn.get("temperature", 1.0)), "top_k": drawn.get("top_k") or None}
        else:  # these settings don't change the likeliest token
            drawn = {"temperature": 0.0}
            choices = {
                key: value for key, value in choices.items() if key not in ("min_p", "epsilon_cutoff", "eta_cutoff")
            }
        sampling = Sampling(**drawn, repetition_penalty=choices.pop("repetition_penalty", 1.0))
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{task} has invalid generation_kwargs: {in_one_line(error)}") from error
    refused = [f"{key}={value}" for key, value in choices.items() if key not in NEUTRAL or value != NEUTRAL[key]]
    if refused:
        raise ConfigError(
            f"{task} sets {', '.join(refused)}, which is not supported: remove it from the task's generation_kwargs"
        )
    return n_new, tuple(text for text in until if text), sampling


def room_for_prompt(context_length: int, n_new: int, task: str) -> int:
    """Return how many tokens of a prompt fit into the context beside `n_new` generated ones, or raise a ConfigError."""
    if n_new >= context_length:
        raise ConfigError(
            f"evaluation.context_length={context_length} leaves no room for a prompt, because {task} generates {n_new} "
            "tokens: give a longer context"
        )
    return context_length - n_new


@register_model("gptstar")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """Our model for the harness's evaluator, registered there as `gptstar`.

    Attributes:
        context_length: the most tokens to read. The beginning of longer requests is cut off. A whole text is scored in
            windows that predict each token once; the last window has a full context.
        n_cut: the number of requests whose beginning was cut off so far.
    """

    def __init__(
        self,
        team: Team,
        tokenizer: Tokenizer,
        progress_of: Callable[[int], OnResults],
        context_length: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Forward requests to a team, on its rank 0.

        Args:
            team: the ranks that process requests.
            tokenizer: the tokenizer of the model.
            progress_of: a function that, given the number of requests, returns a progress callback.
            context_length: the most tokens to read.
            about: the description of the model in the harness's files.
        """
        super().__init__()
        self._about = dict(about or {})
        self.context_length, self.n_cut = context_length, 0
        self._team, self._bpe, self._progress_of = team, tokenizer, progress_of
        self._encode = lru_cache(maxsize=256)(lambda text: tuple(tokenizer.encode([text])[0].tolist()))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "HarnessModel":
        """Load a checkpoint from arguments of `lm` in a string, such as `path=runs/mine,dtype=bfloat16`.

        Raises:
            Refusal: for the same reasons as in `create_from_arg_obj`.
        """
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """Load a checkpoint from arguments of `lm`.

        Args:
            arg_dict: the arguments of `lm` by name.
            additional_config: the harness's own options, of which only `device` is used. Batch sizes are ignored,
                because requests are batched by tokens (`batch_tokens`).

        Raises:
            ConfigError: `lm` has no such argument, or `path` is missing.
            CheckpointError: for the same reasons as in `lm`.
        """
        given, known = dict(arg_dict), list(signature(lm).parameters)
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"model_args: {unknown[0]} is not one of {', '.join(known)}")
        if "path" not in given:
            raise ConfigError("model_args lacks path: give path=CHECKPOINT, a run directory or an exported folder")
        device = (additional_config or {}).get("device")
        given = ({"device": device} if device else {}) | given
        return lm(given.pop("path"), **given)

    def get_model_info(self) -> dict[str, Any]:
        """Return the description of the model for the harness's files."""
        return dict(self._about)

    @property
    def max_length(self) -> int:
        """The context length, by the harness's name."""
        return self.context_length

    @property
    def eot_token_id(self) -> int:
        """The token that precedes a text without a context."""
        return self._bpe.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's fingerprint, which the harness uses in the keys of its request cache."""
        return self._bpe.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokenize a text; special tokens in it are treated as text, and none are added."""
        return list(self._encode(string))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation in nats, and whether it is the greedy one."""
        scorables = []
        for (context, continuation), before, after in requests:
            try:
                scorables.append(Scorable.cut(before, after, self.context_length))
            except ValueError as error:
                start = f"{context[-40:]!r} + {continuation[:40]!r}"
                raise ConfigError(
                    f"{error}, at {start}: nothing to score, or evaluation.context_length={self.context_length} is too "
                    "short"
                ) from error
            self.n_cut += len(before) + len(after) > self.context_length + 1
        scores = self._results(scorables, "loglikelihood", [arguments for arguments, _, _ in requests])
        return [tuple(score) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each whole text in nats, after an end-of-text token."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.context_length, context_len=1
            ):
                before, after = make_disjoint_window(window)
                windows.append(Scorable.cut(before, after, self.context_length))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._results(windows), strict=True):
            totals[owner] += score.log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate a continuation of each text, up to the task's stop strings.

        Raises:
            ConfigError: the generated tokens leave no room for a prompt, or the task needs an unsupported setting.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        is_drawn = [prompt.sampling.temperature > 0 for prompt in prompts]  # sampled texts must not come from the cache
        cached = [None if drawn else request.args for request, drawn in zip(requests, is_drawn, strict=True)]
        return self._results(prompts, "generate_until", cached)

    def _results(self, requests: Sequence[Scorable | Prompt], kind: str = "", cached: Sequence[Any] = ()) -> list[Any]:
        """Process requests; results of those with arguments in `cached` are added to the harness's cache of `kind`."""
        report = self._progress_of(len(requests))

        def on_results(results: Mapping[int, Any]) -> None:
            report(results)
            for number, result in results.items() if cached else ():
                if cached[number] is not None:
                    answer = result if isinstance(result, str) else tuple(result)
                    self.cache_hook.add_partial(kind, cached[number], answer)

        return self._team.all_results(requests, on_results)

    def _prompt(self, context: str, settings: dict[str, Any]) -> Prompt:
        n_new, until, sampling = writing_of(settings, "a task")
        room = room_for_prompt(self.context_length, n_new, "a task")
        tokens = self.tok_encode(context) or [self.eot_token_id]
        self.n_cut += len(tokens) > room
        return Prompt(tuple(tokens[-room:]), n_new, until, sampling)


def run_harness() -> None:
    """Run the harness's own command on `sys.argv`, with the model type `gptstar` registered."""
    from lm_eval.__main__ import cli_evaluate  # the import configures logging, which only this command should do

    cli_evaluate()

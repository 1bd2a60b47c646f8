"""lm-evaluation-harness's view of our model: it hands over texts, and gets log-likelihoods and continuations."""

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
"""Tokens written where a task does not say how many, as for the harness's own models."""

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
"""Settings that are not offered, each with the value that leaves a text as it is."""


def lm(
    path: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
    batch_tokens: int | None = None,
) -> "HarnessModel":
    """Load a checkpoint as lm-evaluation-harness takes it: `lm_eval.simple_evaluate(gptstar.lm(path), tasks=["piqa"])`.

    Scores are those of `evaluate.py`, which gives WikiText a longer context than other tasks: 2,048 tokens.

    Args:
        path: a checkpoint, a run directory, whose best checkpoint is taken, or an exported Hugging Face folder.
        context_length: tokens read at most; 1,024, or what learned positions hold, unless given.
        device: as PyTorch calls it; `auto` takes a GPU where there is one.
        dtype: the type of products.
        batch_tokens: tokens to read at once; by default 1,024 on a CPU, and on a GPU what its memory holds.

    Raises:
        CheckpointError: missing, damaged, unsafe, or without a tokenizer; names the file.
        ConfigError: `context_length` exceeds what learned positions hold; or there is no such device or type.
    """
    if dtype not in get_args(Dtype):
        raise ConfigError(f"dtype={dtype} is not one of {', '.join(get_args(Dtype))}")
    model = load(path)
    if model.tokenizer is None:
        raise CheckpointError(f"{Path(path)} holds no tokenizer, and tasks are text: import it with --tokenizer FILE")
    tokenizer = Tokenizer(model.tokenizer)
    length = TasksConfig(context_length=context_length).length_for("any", model.config.n_ctx)
    try:
        model = model.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:  # PyTorch's, of a device that is not here
        raise ConfigError(f"device={device}: {in_one_line(error)}") from error
    worker = Worker(Scorer(model, dtype=dtype, batch_tokens=batch_tokens), tokenizer)
    about = {"model_num_parameters": model.config.n_params, "model_dtype": dtype}
    return HarnessModel(Team(worker), tokenizer, lambda _: no_progress, length, about)


def n_to_write(task: Task) -> int:
    """Tokens that a task wants written for each item at most; none where it only scores.

    Raises:
        ConfigError: it asks for a way of writing that is not offered.
    """
    settings = task.config.generation_kwargs if task.OUTPUT_TYPE == "generate_until" else None
    return writing_of(settings, task.config.task)[0] if settings is not None else 0


def writing_of(settings: dict[str, Any], task: str) -> tuple[int, tuple[str, ...], Sampling]:
    """What a task's `generation_kwargs` ask for: new tokens at most, the texts that end one, and how tokens are drawn.

    Raises:
        ConfigError: a setting that is not offered and may change a text, or has a value that it can't have.
    """
    try:
        choices = {key: value for key, value in normalize_gen_kwargs(settings, MAX_NEW).items() if value is not None}
        n_new, until, is_drawn = choices.pop("max_gen_toks"), choices.pop("until"), choices.pop("do_sample")
        if n_new < 1 or not isinstance(is_drawn, bool) or not all(isinstance(text, str) for text in until if text):
            given = f"max_gen_toks={n_new}, until={until}, do_sample={is_drawn}"
            raise ValueError(f"{given}: give a number of 1 or more, texts, and true or false")
        drawn = {key: choices.pop(key) for key in ("temperature", "top_k", "top_p", "typical_p") if key in choices}
        if is_drawn:
            drawn |= {"temperature": float(drawn.get("temperature", 1.0)), "top_k": drawn.get("top_k") or None}
        else:  # none of these changes which token is the likeliest
            drawn = {"temperature": 0.0}
            choices = {
                key: value for key, value in choices.items() if key not in ("min_p", "epsilon_cutoff", "eta_cutoff")
            }
        sampling = Sampling(**drawn, repetition_penalty=choices.pop("repetition_penalty", 1.0))
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{task} has generation_kwargs that can't be used: {in_one_line(error)}") from error
    refused = [f"{key}={value}" for key, value in choices.items() if key not in NEUTRAL or value != NEUTRAL[key]]
    if refused:
        raise ConfigError(
            f"{task} asks for {', '.join(refused)}, which is not offered: remove it from the task's generation_kwargs"
        )
    return n_new, tuple(text for text in until if text), sampling


def room_for_prompt(context_length: int, n_new: int, task: str) -> int:
    """Tokens of a prompt that the model can read when it is to write `n_new`; a task that leaves none is refused."""
    if n_new >= context_length:
        raise ConfigError(
            f"evaluation.context_length={context_length} leaves no room for a prompt, as {task} wants {n_new} tokens "
            "written: give a longer one"
        )
    return context_length - n_new


@register_model("gptstar")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A model as the harness's evaluator takes it; its registry has it by the name `gptstar`.

    Attributes:
        context_length: tokens read at most. What is longer loses its beginning, and a text that is scored whole is cut
            into windows that predict each token once, the last of them with a full context.
        n_cut: requests that lost their beginnings so far.
    """

    def __init__(
        self,
        team: Team,
        tokenizer: Tokenizer,
        progress_of: Callable[[int], OnResults],
        context_length: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Take requests for a team on its rank 0.

        Args:
            progress_of: given the number of requests, returns a progress callback.
            about: what the harness's files say of the model.
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
            Refusal: as `create_from_arg_obj`.
        """
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """Load a checkpoint from arguments of `lm`.

        Args:
            additional_config: the harness's own options, of which `device` counts. Its batch sizes do not: requests are
                batched by tokens (`batch_tokens`), and in float32 the scores do not depend on it.

        Raises:
            ConfigError: an argument that `lm` does not take, or no path.
            CheckpointError: as `lm`.
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
        """What the harness's files say of the model."""
        return dict(self._about)

    @property
    def max_length(self) -> int:
        """Tokens read at most, by the harness's name."""
        return self.context_length

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text without a context."""
        return self._bpe.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """The name by which the harness would tell its caches of requests apart."""
        return self._bpe.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; what looks like a special token in it is text, and none is added."""
        return list(self._encode(string))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in nats, and whether greedy decoding would have written it."""
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
        """The log-likelihood of each whole text, in nats, from the token that separates documents on."""
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
        """Each text's continuation, up to what a task says ends it.

        Raises:
            ConfigError: the context length leaves no room for what a task wants written, or it asks for a way of
                writing that is not offered.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        is_drawn = [prompt.sampling.temperature > 0 for prompt in prompts]  # which is not to be repeated from a cache
        cached = [None if drawn else request.args for request, drawn in zip(requests, is_drawn, strict=True)]
        return self._results(prompts, "generate_until", cached)

    def _results(self, requests: Sequence[Scorable | Prompt], kind: str = "", cached: Sequence[Any] = ()) -> list[Any]:
        """Results of requests; those with arguments in `cached` go to the harness's cache of this kind as they come."""
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
    """Run the harness's own command on `sys.argv`, with `gptstar` among its models."""
    from lm_eval.__main__ import cli_evaluate  # sets up logging, which is for its command alone

    cli_evaluate()

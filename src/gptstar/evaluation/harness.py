"""lm-evaluation-harness's view of our model: it hands over texts, and gets log-likelihoods and continuations."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gptstar.checkpoint.read import load
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.scoring import Dtype, Scorable, Scorer
from gptstar.evaluation.tasks.team import Team
from gptstar.evaluation.tasks.worker import Prompt, Worker

MAX_NEW = 256
"""Tokens written where a task does not say how many, as for the harness's own models."""


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
        ConfigError: `context_length` exceeds what learned positions hold.
    """
    model = load(path)
    if model.tokenizer is None:
        raise CheckpointError(f"{Path(path)} holds no tokenizer, and tasks are text: import it with --tokenizer FILE")
    tokenizer = Tokenizer(model.tokenizer)
    length = TasksConfig(context_length=context_length).length_for("any", model.config.n_ctx)
    model = model.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    worker = Worker(Scorer(model, dtype=dtype, batch_tokens=batch_tokens), tokenizer)
    return HarnessModel(Team(worker), tokenizer, length)


def n_to_write(task: Task) -> int:
    """Tokens that a task wants written for each item at most; none where it only scores."""
    settings = task.config.generation_kwargs if task.OUTPUT_TYPE == "generate_until" else None
    return int(normalize_gen_kwargs(settings, MAX_NEW)["max_gen_toks"]) if settings is not None else 0


def room_for_prompt(context_length: int, n_new: int, task: str) -> int:
    """Tokens of a prompt that the model can read when it is to write `n_new`; a task that leaves none is refused."""
    if n_new >= context_length:
        raise ConfigError(
            f"evaluation.context_length={context_length} leaves no room for a prompt, as {task} wants {n_new} tokens "
            "written: give a longer one"
        )
    return context_length - n_new


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A model as the harness's evaluator takes it.

    Attributes:
        context_length: tokens read at most. What is longer loses its beginning, and a text that is scored whole is cut
            into windows that predict each token once, the last of them with a full context.
        n_cut: requests that lost their beginnings so far.
    """

    def __init__(
        self,
        team: Team,
        tokenizer: Tokenizer,
        context_length: int,
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """Take requests for a team on its rank 0; `on_progress` gets the numbers of requests done and in all."""
        super().__init__()
        self.context_length, self.n_cut = context_length, 0
        self._team, self._bpe, self._on_progress = team, tokenizer, on_progress
        self._encode = lru_cache(maxsize=256)(lambda text: tuple(tokenizer.encode([text])[0].tolist()))

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
                sampling that is not offered.
        """
        prompts = [self._prompt(*request.args) for request in requests]
        is_drawn = [prompt.temperature > 0 for prompt in prompts]  # which is not to be repeated from a cache
        cached = [None if drawn else request.args for request, drawn in zip(requests, is_drawn, strict=True)]
        return self._results(prompts, "generate_until", cached)

    def _results(self, requests: Sequence[Scorable | Prompt], kind: str = "", cached: Sequence[Any] = ()) -> list[Any]:
        """Results of requests; those with arguments in `cached` go to the harness's cache of this kind as they come."""
        n_done = 0

        def on_results(results: Mapping[int, Any]) -> None:
            nonlocal n_done
            n_done += len(results)
            self._on_progress(n_done, len(requests))
            for number, result in results.items() if cached else ():
                if cached[number] is not None:
                    answer = result if isinstance(result, str) else tuple(result)
                    self.cache_hook.add_partial(kind, cached[number], answer)

        self._on_progress(0, len(requests))
        return self._team.all_results(requests, on_results)

    def _prompt(self, context: str, settings: dict[str, Any]) -> Prompt:
        choices = dict(normalize_gen_kwargs(settings, MAX_NEW))
        n_new, until, sampled = choices.pop("max_gen_toks"), choices.pop("until"), choices.pop("do_sample", False)
        temperature, top_k = choices.pop("temperature", None), choices.pop("top_k", None)
        unknown = [key for key, value in choices.items() if sampled and value is not None]
        if unknown:
            raise ConfigError(f"a task asks for {', '.join(unknown)} when sampling, which is not offered: leave it out")
        room = room_for_prompt(self.context_length, n_new, "a task")
        tokens = self.tok_encode(context) or [self.eot_token_id]
        self.n_cut += len(tokens) > room
        return Prompt(
            tuple(tokens[-room:]),
            n_new,
            until=tuple(text for text in until if text),
            temperature=(1.0 if temperature is None else float(temperature)) if sampled else 0.0,
            top_k=top_k if sampled else None,
        )

"""A model on tasks of the harness, from their names to figures with intervals."""

import contextlib
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import CachingLM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.evaluation.harness import HarnessModel
from gptstar.evaluation.results import Metric, TaskResult, TaskResults
from gptstar.evaluation.tasks.collect import metrics_of, samples_of
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.offline import clusters_of, item_hash, load_tasks, source_of
from gptstar.evaluation.tasks.scoring import Scorable, Score, Scorer
from gptstar.evaluation.tasks.team import Settled, Team
from gptstar.evaluation.tasks.worker import Prompt, Worker
from gptstar.model import GPT

PACKAGES = ("gptstar", "lm-eval", "torch", "tokenizers", "datasets", "numpy", "scipy", "statsmodels")


def evaluate_tasks(
    model: GPT, tokenizer: Tokenizer | None, config: TasksConfig, *, checkpoint: Mapping[str, Any], console: Console
) -> TaskResults | None:
    """Score a model on tasks, with all ranks of the job if it has several.

    Random states are left as they were found, and so is the model's mode.

    Args:
        model: on its device.
        checkpoint: who the model is, for the results; its `sha256` is part of any cache's key.

    Returns:
        On rank 0 the results, on the others None.

    Raises:
        ConfigError: a task that does not exist, or can't be done in this context length.
        CheckpointError: no tokenizer, or one that is not the model's.
        DataError: a task's items can't be had or are not as they should be.
    """
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint['name']} holds no tokenizer, and tasks are text: give tokenizer=FILE, a `tokenizers` JSON"
        )
    if tokenizer.n_vocab > model.config.n_vocab:
        raise CheckpointError(f"the tokenizer has {tokenizer.n_vocab:,} tokens, the model {model.config.n_vocab:,}")
    on_gpu = model.token_embedding.weight.is_cuda
    batch_tokens = config.batch_tokens or (32_768 if on_gpu else 1024)
    scorer = Scorer(model, dtype=config.dtype, batch_tokens=batch_tokens, batch_size=config.batch_size)
    team: Team[Scorable | Prompt, Score | str] = Team(Worker(scorer, tokenizer, seed=config.seed))
    was_training = model.training
    model.eval()
    try:
        with _undisturbed(config.seed):
            if team.rank != 0:
                team.serve()
                return None
            return _on_rank_0(team, tokenizer, config, checkpoint, model.config.n_ctx, console)
    finally:
        team.dismiss()
        model.train(was_training)


def _on_rank_0(
    team: Team[Scorable | Prompt, Score | str],
    tokenizer: Tokenizer,
    config: TasksConfig,
    checkpoint: Mapping[str, Any],
    n_ctx: int | None,
    console: Console,
) -> TaskResults:
    tasks = load_tasks(config.tasks, config.data_dir, num_fewshot=config.num_fewshot)
    results = []
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}/{task.total:,}")
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        for task in tasks:
            bar = progress.add_task(task.config.task, total=0)

            def settled(found: Mapping[int, Any], bar: Any = bar) -> None:
                progress.advance(bar, len(found))

            def begin(total: int, bar: Any = bar, settled: Settled = settled) -> Settled:
                progress.update(bar, total=total, completed=0)
                return settled

            lm = HarnessModel(team, tokenizer, begin)
            lm.context_length = config.length_for(task.config.task, n_ctx)
            results.append(_one(task, lm, config, checkpoint))
    protocol = {
        "dtype": config.dtype,
        "limit": config.limit,
        "num_fewshot": config.num_fewshot,
        "seeds": {"random": config.seed, "numpy": config.seed, "torch": config.seed, "fewshot": config.seed},
        "tokenizer": tokenizer.fingerprint,
    }
    return TaskResults(dict(checkpoint), protocol, {name: version(name) for name in PACKAGES}, tuple(results))


def _one(task: Task, lm: HarnessModel, config: TasksConfig, checkpoint: Mapping[str, Any]) -> TaskResult:
    name = task.config.task
    if config.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=config.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=config.seed)
    asked = CachingLM(lm, str(_cache_file(config, lm, checkpoint))) if config.cache else lm
    with contextlib.redirect_stderr(io.StringIO()):  # bars of its own, which say nothing
        found = evaluate(asked, {"tasks": {name: task}}, limit=config.limit, bootstrap_iters=0, log_samples=True)
    documents = list(task.eval_docs)
    hashes = [item_hash(document, name) for document in documents]
    samples = samples_of(task, found["samples"][name], hashes, clusters_of(name, documents))
    metrics = metrics_of(task, found["results"][name], samples)
    if config.overlap is not None:
        metrics += _on_clean(task, found["results"][name], samples, config.overlap, len(documents))
    return TaskResult(
        name,
        str(task.VERSION),
        source_of(task),
        lm.context_length,
        int(task.get_config("num_fewshot")),
        metrics,
        samples,
    )


def _on_clean(
    task: Task, found: Mapping[str, Any], samples: Sequence[Any], overlap: Path, n_items: int
) -> tuple[Metric, ...]:
    """The same figures over the items that share no run of words with the training text."""
    try:
        benchmarks = json.loads(overlap.read_text(encoding="utf-8"))["benchmarks"]
        known = benchmarks.get(task.config.task)
        if known is None:
            return ()
        if known["items"] != n_items:
            raise ConfigError(
                f"evaluation.overlap={overlap} is about {known['items']:,} items of {task.config.task}, which has "
                f"{n_items:,} here: run `gptstar data overlap` on the same file"
            )
        left_out = {*known["dirty"], *known["too_short"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"evaluation.overlap={overlap} is not what `gptstar data overlap --json` writes ({error!r})"
        ) from error
    clean = [sample for sample in samples if sample.item not in left_out]
    return metrics_of(task, found, clean, subset="clean") if clean else ()


def _cache_file(config: TasksConfig, lm: HarnessModel, checkpoint: Mapping[str, Any]) -> Path:
    """Of scores by this checkpoint, in this length and type: the harness's own keys hold the text alone."""
    assert config.cache is not None
    if not checkpoint.get("sha256"):
        raise ConfigError("evaluation.cache needs a checkpoint that is a file: leave it out")
    return config.cache / f"{checkpoint['sha256'][:32]}_{lm.context_length}_{config.dtype}.db"


@contextlib.contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """Seed every generator of random numbers, and put back what was there."""
    python, numpy = random.getstate(), np.random.get_state()  # the harness draws from these
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

"""A model on tasks of the harness, from their names to figures with intervals."""

import contextlib
import io
import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from gptstar.evaluation.batch_size import smallest
from gptstar.evaluation.harness import HarnessModel, n_to_write
from gptstar.evaluation.results import TaskResult, TaskResults, versions_of
from gptstar.evaluation.tasks.clean import left_out
from gptstar.evaluation.tasks.collect import metrics_of, samples_of
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.offline import clusters_of, item_hash, load_tasks, source_of
from gptstar.evaluation.tasks.registry import definitions
from gptstar.evaluation.tasks.scoring import Scorable, Score, Scorer
from gptstar.evaluation.tasks.team import Settled, Team
from gptstar.evaluation.tasks.worker import Prompt, Worker
from gptstar.model import GPT

PACKAGES = ("lm-eval", "torch", "tokenizers", "datasets", "numpy", "scipy")


def evaluate_tasks(
    model: GPT,
    tokenizer: Tokenizer | None,
    config: TasksConfig,
    *,
    checkpoint: Mapping[str, Any],
    console: Console,
    tasks: Sequence[Task] = (),
) -> TaskResults | None:
    """Score a model on tasks, with all ranks of the job if it has several.

    Random states are left as they were found, and so is the model's mode.

    Args:
        model: on its device.
        checkpoint: who the model is, for the results; its `sha256` is part of any cache's key.
        tasks: as `prepared_tasks` gave them, where they are already there.

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
    scorer = Scorer(model, dtype=config.dtype, batch_tokens=config.batch_tokens, batch_size=config.batch_size)
    team: Team[Scorable | Prompt, Score | str] = Team(Worker(scorer, tokenizer, seed=config.seed))
    scorer.most = team.agree(scorer.most, smallest)
    was_training = model.training
    model.eval()
    try:
        with _undisturbed(config.seed, scorer.device):
            if team.rank != 0:
                team.serve()
                return None
            tasks = tasks or prepared_tasks(config, model.config.n_ctx)
            results = _on_rank_0(team, tokenizer, config, checkpoint, tasks, console, model.config.n_ctx)
            batches = {"batch_tokens": scorer.most.tokens, "batch_size": config.batch_size}
            return replace(results, protocol=results.protocol | batches | {"device": scorer.device.type})
    finally:
        team.dismiss()
        model.train(was_training)


def prepared_tasks(config: TasksConfig, n_ctx: int | None) -> list[Task]:
    """The tasks with their items, and all that can be refused before a model has read anything.

    Args:
        n_ctx: the capacity of learned positions, where a model has them.

    Raises:
        ConfigError, DataError: as `evaluate_tasks`.
    """
    tasks = load_tasks(config.tasks, config.data_dir, num_fewshot=config.num_fewshot, include_path=config.include_path)
    for task in tasks:
        length, to_write = config.length_for(task.config.task, n_ctx), n_to_write(task)
        if to_write >= length:
            raise ConfigError(
                f"evaluation.context_length={length} leaves no room for a prompt, as {task.config.task} wants "
                f"{to_write} tokens written: give a longer one"
            )
        if config.overlap is not None:
            left_out(config.overlap, task)
    return tasks


def _on_rank_0(
    team: Team[Scorable | Prompt, Score | str],
    tokenizer: Tokenizer,
    config: TasksConfig,
    checkpoint: Mapping[str, Any],
    tasks: Sequence[Task],
    console: Console,
    n_ctx: int | None,
) -> TaskResults:
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

            lm = HarnessModel(team, tokenizer, begin, config.length_for(task.config.task, n_ctx))
            results.append(_one(task, lm, config, checkpoint))
            if lm.n_cut:
                console.print(
                    f"{task.config.task}: {lm.n_cut:,} of its requests are longer than {lm.context_length:,} tokens, "
                    "and lost their beginnings",
                    highlight=False,
                )
    protocol: dict[str, Any] = {
        "dtype": config.dtype,
        "limit": config.limit,
        "num_fewshot": config.num_fewshot,
        "seeds": {"random": config.seed, "numpy": config.seed, "torch": config.seed, "fewshot": config.seed},
        "tokenizer": tokenizer.fingerprint,
    }
    if config.include_path is not None:
        protocol["include_path"] = definitions(config.include_path)
    return TaskResults(dict(checkpoint), protocol, versions_of(*PACKAGES), tuple(results))


def _one(task: Task, lm: HarnessModel, config: TasksConfig, checkpoint: Mapping[str, Any]) -> TaskResult:
    name = task.config.task
    if config.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=config.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=config.seed)
    asked = CachingLM(lm, str(_cache_file(config, lm, checkpoint))) if config.cache else lm
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of its own, which say nothing
            found = evaluate(asked, {"tasks": {name: task}}, limit=config.limit, bootstrap_iters=0, log_samples=True)
    except OverflowError as error:  # of its exp
        raise CheckpointError(f"{name}: a perplexity beyond what a float holds; the model has diverged") from error
    documents = list(task.eval_docs)
    hashes = [item_hash(document, name) for document in documents]
    samples = samples_of(task, found["samples"][name], hashes, clusters_of(name, documents))
    metrics = metrics_of(task, found["results"][name], samples)
    if config.overlap is not None:
        clean = [sample for sample in samples if sample.item not in left_out(config.overlap, task)]
        metrics += metrics_of(task, found["results"][name], clean, subset="clean") if clean else ()
    return TaskResult(
        name,
        str(task.VERSION),
        source_of(task),
        lm.context_length,
        int(task.get_config("num_fewshot")),
        metrics,
        samples,
        lm.n_cut,
    )


def _cache_file(config: TasksConfig, lm: HarnessModel, checkpoint: Mapping[str, Any]) -> Path:
    """Of scores by this checkpoint, tokenizer, length and type: the harness's own keys hold the text alone."""
    assert config.cache is not None
    if not checkpoint.get("sha256"):
        raise ConfigError("evaluation.cache needs a checkpoint that is a file: leave it out")
    path = config.cache / f"{checkpoint['sha256'][:32]}_{lm.tokenizer_name[:16]}_{lm.context_length}_{config.dtype}.db"
    if path.exists():
        try:
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("pragma quick_check").fetchall()
        except sqlite3.Error as error:
            raise ConfigError(f"{path} is no cache of scores, or damaged ({error}): remove it") from error
    return path


@contextlib.contextmanager
def _undisturbed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every generator of random numbers, and put back what was there."""
    python, numpy = random.getstate(), np.random.get_state()  # the harness draws from these
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

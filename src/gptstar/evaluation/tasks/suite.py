"""Evaluation of a model on harness tasks, from the tasks' names to metrics with intervals, tables and pictures."""

import contextlib
import io
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import CachingLM
from lm_eval.evaluator import evaluate
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gptstar.checkpoint.format import Checkpoint
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.evaluation.batch_size import smallest
from gptstar.evaluation.harness import HarnessModel, n_to_write, room_for_prompt
from gptstar.evaluation.results import TaskResults, versions_of, write_tasks
from gptstar.evaluation.tasks.collect import kinds_of
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.dispatch import ByTask, set_options
from gptstar.evaluation.tasks.harness_files import facts_of, with_errors, write_harness_files
from gptstar.evaluation.tasks.offline import Loaded, load
from gptstar.evaluation.tasks.outcome import results_of, unclean_items
from gptstar.evaluation.tasks.panels import score_panels
from gptstar.evaluation.tasks.registry import definitions, quiet
from gptstar.evaluation.tasks.scoring import Scorer
from gptstar.evaluation.tasks.tables import task_markdown, task_table, title
from gptstar.evaluation.tasks.team import OnResults, Team
from gptstar.evaluation.tasks.worker import Worker
from gptstar.model import GPT
from gptstar.plots.scores import draw_scores
from gptstar.plots.style import save

PACKAGES = ("lm-eval", "torch", "tokenizers", "datasets", "numpy", "scipy")


@dataclass(frozen=True)
class Scored:
    """The outcome of an evaluation.

    Attributes:
        results: our results.
        output: the harness's results, from `lm_eval.evaluator.evaluate`.
        loaded: the tasks and groups.
    """

    results: TaskResults
    output: dict[str, Any]
    loaded: Loaded


def evaluate_and_report(
    identity: Mapping[str, Any],
    checkpoint: Checkpoint,
    config: TasksConfig,
    device: torch.device,
    output: Path,
    console: Console,
    *,
    tasks: Loaded | None = None,
) -> None:
    """Score a checkpoint, print a table, and write `results.json`, `.md` and `.png`.

    The folder also receives files in the harness's format, `results_TIME.json` and `samples_TASK_TIME.jsonl`.

    Args:
        identity: the checkpoint's name, path and hash, for the results.
        checkpoint: the checkpoint to score.
        config: the tasks, and how to score them.
        device: the device to compute on.
        output: the folder to write to.
        console: the console for the table.
        tasks: the result of `prepared_tasks`, if it was called before.

    Raises:
        Refusal: `score` raises it, or the results can't be written; they were printed before.
    """
    began = time.time()
    tokenizer = Tokenizer(checkpoint.tokenizer) if checkpoint.tokenizer else None
    model = checkpoint.build().to(device)
    scored = score(model, tokenizer, config, checkpoint=identity, console=console, tasks=tasks)
    if scored is None:
        return
    console.print(task_table(scored.results))
    try:
        write_tasks(scored.results, output)
        (output / "results.md").write_text(task_markdown(scored.results), encoding="utf-8")
        figure = draw_scores(score_panels([scored.results]), title(scored.results))
        if figure is not None:
            save(figure, output / "results.png")
        assert tokenizer is not None
        with_errors(scored.output, scored.loaded)
        facts = facts_of(identity, config, tokenizer, device, began)
        facts["max_length"] = max(task.context_length for task in scored.results.tasks)
        write_harness_files(scored.output | facts, output)
    except OSError as error:
        raise ConfigError(
            f"can't write all results into {output} ({error.strerror or error}): free some disk space"
        ) from error
    files = "results.json, results.md, results.png; in the harness's format results_*.json, samples_*.jsonl"
    console.print(f"in {output}: {files}", soft_wrap=True, highlight=False)


def score(
    model: GPT,
    tokenizer: Tokenizer | None,
    config: TasksConfig,
    *,
    checkpoint: Mapping[str, Any],
    console: Console,
    tasks: Loaded | None = None,
) -> Scored | None:
    """Score a model on tasks, with all ranks of the job if it has several.

    Afterwards random states and the model's mode are the same as before. Only rank 0 returns results.

    Args:
        model: the model, on its device.
        tokenizer: the tokenizer of the checkpoint, if it has one.
        config: the tasks, and how to score them.
        checkpoint: the checkpoint's identity, for the results; its `sha256` is part of the cache's key.
        console: the console for progress.
        tasks: the result of `prepared_tasks`, if it was called before.

    Raises:
        ConfigError: a task does not exist, or does not fit the context length.
        CheckpointError: the checkpoint has no tokenizer.
        DataError: the tokenizer has more tokens than the model, or a task's items are missing or wrong.
    """
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint['name']} holds no tokenizer, which tasks need: give tokenizer=FILE, a `tokenizers` JSON"
        )
    tokenizer.check_vocabulary(model.config.n_vocab, "the tokenizer")
    scorer = Scorer(model, dtype=config.dtype, batch_tokens=config.batch_tokens, batch_size=config.batch_size)
    team = Team(Worker(scorer, tokenizer, seed=config.seed))
    scorer.most = smallest(team.ranks.gathered(scorer.most))
    was_training = model.training
    model.eval()
    name = TextColumn("{task.description}", markup=False)
    columns = name, BarColumn(), TextColumn("{task.completed:,}/{task.total:,}")
    is_quiet = not (console.is_terminal and team.ranks.first)
    try:
        with (
            _undisturbed(config.seed, scorer.device),
            Progress(*columns, TimeRemainingColumn(), console=console, disable=is_quiet) as progress,
        ):
            if not team.ranks.first:
                team.serve()
                return None
            loaded = tasks or prepared_tasks(config, model.config.n_ctx)

            def model_for(task: str) -> HarnessModel:
                def progress_of(n_requests: int) -> OnResults:
                    bar = progress.add_task(task, total=n_requests)
                    return lambda results: progress.advance(bar, len(results))

                return HarnessModel(team, tokenizer, progress_of, config.length_for(task, model.config.n_ctx))

            models = {task.config.task: model_for(task.config.task) for task in loaded.tasks}
            output = _evaluated(loaded, models, config, checkpoint)
    finally:
        team.dismiss()
        model.train(was_training)
    results = results_of(loaded, models, output, config)
    for task in results:
        if task.n_cut and not task.members:
            console.print(
                f"{task.task}: {task.n_cut:,} of its requests exceed {task.context_length:,} tokens; their beginnings "
                "were cut off",
                highlight=False,
            )
    about = _protocol(config, tokenizer, scorer)
    return Scored(TaskResults(dict(checkpoint), about, versions_of(*PACKAGES), tuple(results)), output, loaded)


def prepared_tasks(config: TasksConfig, n_ctx: int | None) -> Loaded:
    """Load the tasks with their items, and check everything that needs no model, which has `n_ctx` learned positions.

    Raises:
        ConfigError, DataError: for the same reasons as in `score`.
    """
    loaded = load(
        config.tasks,
        config.data_dir,
        num_fewshot=config.num_fewshot,
        include_path=config.include_path,
        metadata=config.metadata,
    )
    for task in loaded.tasks:
        set_options(task, config)
        room_for_prompt(config.length_for(task.config.task, n_ctx), n_to_write(task), task.config.task)
        if config.overlap is not None:
            unclean_items(config.overlap, task)
    return loaded


def _protocol(config: TasksConfig, tokenizer: Tokenizer, scorer: Scorer) -> dict[str, Any]:
    """Return the settings that shape the scores, for the results."""
    protocol: dict[str, Any] = {
        "dtype": config.dtype,
        "limit": config.limit,
        "num_fewshot": config.num_fewshot,
        "seeds": dict.fromkeys(("random", "numpy", "torch", "fewshot"), config.seed),
        "tokenizer": tokenizer.fingerprint,
    }
    if config.include_path is not None:
        protocol["include_path"] = definitions(config.include_path)
    protocol |= {key: getattr(config, key) for key in ("gen_kwargs", "metadata") if getattr(config, key)}
    protocol |= {"predict_only": True} if config.predict_only else {}
    batches = {"batch_tokens": scorer.most.tokens, "batch_size": config.batch_size, "device": scorer.device.type}
    return protocol | batches


def _evaluated(
    loaded: Loaded, models: Mapping[str, HarnessModel], config: TasksConfig, checkpoint: Mapping[str, Any]
) -> dict[str, Any]:
    """Run the harness on all tasks and groups, and return its results."""
    answering = dict(models)
    if config.cache is not None:
        answering = {task: CachingLM(lm, str(_cache_file(config, lm, checkpoint))) for task, lm in models.items()}
    tasks = {"tasks": {task.config.task: task for task in loaded.tasks}, "groups": loaded.groups}
    try:
        with contextlib.redirect_stderr(io.StringIO()), quiet():  # its progress bars, and warnings about few examples
            output: dict[str, Any] = evaluate(
                ByTask(answering), tasks, limit=config.limit, bootstrap_iters=0, log_samples=True
            )
    except OverflowError as error:  # from exp of a mean loss
        kinds = {task.config.task: set(kinds_of(task).values()) for task in loaded.tasks}
        names = ", ".join(name for name, has in kinds.items() if "perplexity" in has) or ", ".join(kinds)
        raise CheckpointError(f"{names}: the perplexity exceeds a float's range; the model has diverged") from error
    return output


def _cache_file(config: TasksConfig, lm: HarnessModel, checkpoint: Mapping[str, Any]) -> Path:
    """Return the cache file for this checkpoint, tokenizer, length and type; the harness's keys hold only the text."""
    assert config.cache is not None
    if not checkpoint.get("sha256"):
        raise ConfigError("evaluation.cache needs a checkpoint that is a file: leave it out")
    path = config.cache / f"{checkpoint['sha256'][:32]}_{lm.tokenizer_name[:16]}_{lm.context_length}_{config.dtype}.db"
    if path.exists():
        try:
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("pragma quick_check").fetchall()
        except sqlite3.Error as error:
            raise ConfigError(f"{path} is not a cache of scores, or damaged ({error}): remove it") from error
    return path


@contextlib.contextmanager
def _undisturbed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every random number generator, and restore their states afterwards."""
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

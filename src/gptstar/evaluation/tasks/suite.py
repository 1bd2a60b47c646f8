"""A model on tasks of the harness, from their names to figures with intervals, tables and pictures."""

import contextlib
import io
import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import CachingLM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gptstar.checkpoint.format import Checkpoint
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError, with_type
from gptstar.evaluation.batch_size import smallest
from gptstar.evaluation.harness import HarnessModel, n_to_write, room_for_prompt
from gptstar.evaluation.results import TaskResult, TaskResults, versions_of, write_tasks
from gptstar.evaluation.statistics.intervals import join_clusters
from gptstar.evaluation.tasks.collect import copies_of, metrics_of, samples_of
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.offline import clusters_of, item_hash, load_tasks, source_of
from gptstar.evaluation.tasks.panels import score_panels
from gptstar.evaluation.tasks.registry import definitions
from gptstar.evaluation.tasks.scoring import Scorer
from gptstar.evaluation.tasks.tables import task_markdown, task_table, title
from gptstar.evaluation.tasks.team import OnResults, Team
from gptstar.evaluation.tasks.worker import Worker
from gptstar.files import read_json
from gptstar.model import GPT
from gptstar.plots.scores import draw_scores
from gptstar.plots.style import save

PACKAGES = ("lm-eval", "torch", "tokenizers", "datasets", "numpy", "scipy")


def evaluate_and_report(
    who: Mapping[str, Any],
    checkpoint: Checkpoint,
    config: TasksConfig,
    device: torch.device,
    output: Path,
    console: Console,
) -> None:
    """Score a checkpoint with identity `who`, print a table, and write `results.json`, `results.md` and `results.png`.

    Raises:
        Refusal: as `evaluate_tasks`; or the results can't be written, after they were printed.
    """
    tokenizer = Tokenizer(checkpoint.tokenizer) if checkpoint.tokenizer else None
    model = checkpoint.build().to(device)
    results = evaluate_tasks(model, tokenizer, config, checkpoint=who, console=console)
    if results is None:
        return
    console.print(task_table(results))
    try:
        write_tasks(results, output)
        (output / "results.md").write_text(task_markdown(results), encoding="utf-8")
        figure = draw_scores(score_panels([results]), title(results))
        if figure is not None:
            save(figure, output / "results.png")
    except OSError as error:
        raise ConfigError(
            f"can't write all results into {output} ({error.strerror or error}): make room there"
        ) from error
    console.print(f"in {output}: results.json, results.md, results.png", soft_wrap=True, highlight=False)


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

    Random states are left as they were found, and so is the model's mode. Only rank 0 returns results.

    Args:
        model: on its device.
        checkpoint: who the model is, for the results; its `sha256` is part of any cache's key.
        tasks: as `prepared_tasks` gave them, where they are already there.

    Raises:
        ConfigError: a task that does not exist, or can't be done in this context length.
        CheckpointError: no tokenizer.
        DataError: the tokenizer has more tokens than the model, or a task's items are missing or wrong.
    """
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint['name']} holds no tokenizer, and tasks are text: give tokenizer=FILE, a `tokenizers` JSON"
        )
    tokenizer.check_vocabulary(model.config.n_vocab, "the tokenizer")
    scorer = Scorer(model, dtype=config.dtype, batch_tokens=config.batch_tokens, batch_size=config.batch_size)
    team = Team(Worker(scorer, tokenizer, seed=config.seed))
    scorer.most = smallest(team.ranks.gathered(scorer.most))
    was_training = model.training
    model.eval()
    results = []
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

            for task in tasks or prepared_tasks(config, model.config.n_ctx):

                def progress_of(n_requests: int, name: str = task.config.task) -> OnResults:
                    bar = progress.add_task(name, total=n_requests)
                    return lambda results: progress.advance(bar, len(results))

                length = config.length_for(task.config.task, model.config.n_ctx)
                lm = HarnessModel(team, tokenizer, progress_of, length)
                results.append(_evaluate(task, lm, config, checkpoint))
                if lm.n_cut:
                    console.print(
                        f"{task.config.task}: {lm.n_cut:,} of its requests are longer than {lm.context_length:,} "
                        "tokens, and lost their beginnings",
                        highlight=False,
                    )
    finally:
        team.dismiss()
        model.train(was_training)
    return TaskResults(dict(checkpoint), _protocol(config, tokenizer, scorer), versions_of(*PACKAGES), tuple(results))


def prepared_tasks(config: TasksConfig, n_ctx: int | None) -> list[Task]:
    """The tasks with their items, and all that can be refused before a model, of capacity `n_ctx`, has read anything.

    Raises:
        ConfigError, DataError: as `evaluate_tasks`.
    """
    tasks = load_tasks(config.tasks, config.data_dir, num_fewshot=config.num_fewshot, include_path=config.include_path)
    for task in tasks:
        room_for_prompt(config.length_for(task.config.task, n_ctx), n_to_write(task), task.config.task)
        if config.overlap is not None:
            _unclean_items(config.overlap, task)
    return tasks


def _protocol(config: TasksConfig, tokenizer: Tokenizer, scorer: Scorer) -> dict[str, Any]:
    """What shapes the scores, for the results."""
    protocol: dict[str, Any] = {
        "dtype": config.dtype,
        "limit": config.limit,
        "num_fewshot": config.num_fewshot,
        "seeds": dict.fromkeys(("random", "numpy", "torch", "fewshot"), config.seed),
        "tokenizer": tokenizer.fingerprint,
    }
    if config.include_path is not None:
        protocol["include_path"] = definitions(config.include_path)
    batches = {"batch_tokens": scorer.most.tokens, "batch_size": config.batch_size, "device": scorer.device.type}
    return protocol | batches


def _evaluate(task: Task, lm: HarnessModel, config: TasksConfig, checkpoint: Mapping[str, Any]) -> TaskResult:
    name = task.config.task
    if config.num_fewshot is not None or task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=config.num_fewshot or 0)
    task.set_fewshot_seed(seed=config.seed)
    cached = CachingLM(lm, str(_cache_file(config, lm, checkpoint))) if config.cache else lm
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of its own, which say nothing
            output = evaluate(cached, {"tasks": {name: task}}, limit=config.limit, bootstrap_iters=0, log_samples=True)
    except OverflowError as error:  # of its exp
        raise CheckpointError(f"{name}: a perplexity beyond what a float holds; the model has diverged") from error
    documents, figures = list(task.eval_docs), output["results"][name]
    hashes = [item_hash(document, name) for document in documents]
    copies = copies_of(output["samples"][name], hashes)
    clusters = join_clusters(clusters_of(name, documents), copies)
    samples = samples_of(task, output["samples"][name], hashes, clusters)
    metrics = metrics_of(task, figures, samples)
    if config.overlap is not None:
        unclean = _unclean_items(config.overlap, task)
        clean = [sample for sample in samples if sample.item not in unclean]
        metrics += metrics_of(task, figures, clean, subset="clean")
    return TaskResult(
        task=name,
        version=str(task.VERSION),
        source=source_of(task),
        context_length=lm.context_length,
        num_fewshot=int(task.get_config("num_fewshot")),
        metrics=metrics,
        samples=samples,
        n_cut=lm.n_cut,
        n_copies=len(samples) - len({copies[sample.item] for sample in samples}),
    )


def _unclean_items(overlap: Path, task: Task) -> set[int]:
    """Numbers of the items that share a run of words with the training text, or are too short to tell.

    A task that the file of `gptstar data overlap --json` does not know has none, so its clean items are all.
    """
    name, n_items = task.config.task, len(task.eval_docs)
    try:
        known = read_json(overlap)["benchmarks"].get(name)
        if known is None:
            return set()
        n_known, items = known["items"], {*known["dirty"], *known["too_short"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"evaluation.overlap={overlap} is not what `gptstar data overlap --json` writes ({with_type(error)})"
        ) from error
    if n_known != n_items:
        raise ConfigError(
            f"evaluation.overlap={overlap} is about {n_known:,} items of {name}, which has {n_items:,} here: run "
            "`gptstar data overlap` on the same file"
        )
    return items


def _cache_file(config: TasksConfig, lm: HarnessModel, checkpoint: Mapping[str, Any]) -> Path:
    """The cache for this checkpoint, tokenizer, length and type: the harness's own keys hold the text alone."""
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

"""Result files in the harness's own format, `results_TIME.json` and `samples_TASK_TIME.jsonl`, for existing scripts."""

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.metrics import stderr_for_metric
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, get_commit_from_path

from gptstar.data.tokenizer import Tokenizer
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.offline import Loaded

BOOTSTRAP_ITERS = 1000
"""Resamples for standard errors without a formula, such as that of LAMBADA's perplexity; the harness's 100,000 would
take minutes."""


def with_errors(output: dict[str, Any], loaded: Loaded) -> None:
    """Add the harness's standard errors to its results of tasks and groups."""
    results = output["results"]
    for task in loaded.tasks:
        figures, aggregation = results[task.config.task], task.aggregation()
        for key in [key for key in figures if "," in key and "_stderr," not in key]:
            metric, _, filter_name = key.partition(",")
            samples = output["samples"][task.config.task]
            scores = [each[metric] for each in samples if each["filter"] == filter_name and metric in each]
            error = stderr_for_metric(aggregation.get(metric), BOOTSTRAP_ITERS)
            with _in_this_process():
                figures[f"{metric}_stderr,{filter_name}"] = error(scores) if error and len(scores) > 1 else "N/A"
    for name, group in loaded.groups.items():
        results[name] = group.aggregate(results)
        if name in output.get("groups", {}):
            output["groups"][name] = dict(results[name])


def facts_of(
    identity: Mapping[str, Any], config: TasksConfig, tokenizer: Tokenizer, device: torch.device, began: float
) -> dict[str, Any]:
    """Return the facts that `simple_evaluate` adds to its results: the model, the options, and the machine.

    Args:
        identity: the checkpoint's identity.
        config: the tasks and their options.
        tokenizer: the checkpoint's tokenizer.
        device: the device of the evaluation.
        began: the start of the evaluation, in seconds since the epoch.
    """
    end = tokenizer.special_tokens[tokenizer.end_of_text], str(tokenizer.end_of_text)
    facts: dict[str, Any] = {
        "config": {
            "model": "gptstar",
            "model_args": {
                "path": identity.get("path"),
                "dtype": config.dtype,
                "context_length": config.context_length,
            },
            "model_num_parameters": identity.get("n_params"),
            "model_dtype": str(torch.float32),  # the weights' type; model_args.dtype is that of products
            "model_revision": "main",
            "model_sha": identity.get("sha256") or "",
            "batch_size": config.batch_size,
            "batch_sizes": [],
            "device": str(device),
            "use_cache": None if config.cache is None else str(config.cache),
            "limit": config.limit,
            "bootstrap_iters": BOOTSTRAP_ITERS,
            "gen_kwargs": config.gen_kwargs or None,
            **dict.fromkeys(("random_seed", "numpy_seed", "torch_seed", "fewshot_seed"), config.seed),
        },
        "git_hash": get_commit_from_path(Path.cwd()),
        "date": began,
        **{f"tokenizer_{role}_token": list(end) for role in ("pad", "eos", "bos")},  # the same as in an exported model
        "eot_token_id": tokenizer.end_of_text,
    }
    add_env_info(facts)
    return facts


def write_harness_files(output: dict[str, Any], folder: Path) -> None:
    """Write the harness's files with its own writer. It modifies the samples, so call this last.

    Args:
        output: the harness's results, together with the facts of `facts_of`.
        folder: the folder to write into.

    Raises:
        OSError: a file can't be written.
    """
    samples = output.pop("samples")
    tracker = EvaluationTracker(output_path=str(folder / "results.json"))
    facts = tracker.general_config_tracker
    model = output["config"]["model"]
    facts.log_experiment_args(model, output["config"]["model_args"], None, None, fewshot_as_multiturn=False)
    facts.start_time = time.perf_counter() - (time.time() - output["date"])
    with _failures_are_errors():
        tracker.save_results_aggregated(results=output, samples=samples)
        for task, entries in samples.items():
            tracker.save_results_samples(task_name=task, samples=entries)


@contextlib.contextmanager
def _in_this_process() -> Iterator[None]:
    """Make the harness bootstrap in this process, without output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        before = os.environ.get("DISABLE_MULTIPROC")
        os.environ["DISABLE_MULTIPROC"] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ["DISABLE_MULTIPROC"]
            else:
                os.environ["DISABLE_MULTIPROC"] = before


@contextlib.contextmanager
def _failures_are_errors() -> Iterator[None]:
    """Raise an OSError for failures of the harness's writer, which only logs them."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger(EvaluationTracker.__module__)
    level, passes_on = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = passes_on
    for number, record in enumerate(records):
        if record.levelno >= logging.WARNING:
            raise OSError(": ".join(each.getMessage() for each in records[number : number + 2]))

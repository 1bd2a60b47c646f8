"""Conversion of the harness's output to our results: metrics with intervals, and every item's scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task

from gptstar.errors import ConfigError, with_type
from gptstar.evaluation.harness import HarnessModel
from gptstar.evaluation.results import Sample, TaskResult
from gptstar.evaluation.statistics.intervals import join_clusters
from gptstar.evaluation.tasks.collect import copies_of, metrics_of, samples_of
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.groups import group_results
from gptstar.evaluation.tasks.offline import Loaded, clusters_of, item_hash, source_of
from gptstar.files import read_json


def results_of(
    loaded: Loaded, models: Mapping[str, HarnessModel], output: Mapping[str, Any], config: TasksConfig
) -> list[TaskResult]:
    """Return the results of groups, then those of tasks.

    Args:
        models: the models by task, which count the requests that they truncated.
        output: the harness's results.
    """
    tasks: dict[str, TaskResult] = {}
    clean: dict[str, list[Sample]] = {}
    for task in loaded.tasks:
        name, logged = task.config.task, output["samples"][task.config.task]
        documents, figures = list(task.eval_docs), output["results"][name]
        hashes = [item_hash(document, name) for document in documents]
        copies = copies_of(logged, hashes)
        samples = samples_of(task, logged, hashes, join_clusters(clusters_of(name, documents), copies))
        metrics = metrics_of(task, figures, samples)
        if config.overlap is not None:
            unclean = unclean_items(config.overlap, task)
            clean[name] = [sample for sample in samples if sample.item not in unclean]
            metrics += metrics_of(task, figures, clean[name], subset="clean")
        tasks[name] = TaskResult(
            task=name,
            version=str(task.VERSION),
            source=source_of(task),
            context_length=models[name].context_length,
            num_fewshot=int(task.get_config("num_fewshot")),
            metrics=metrics,
            samples=samples,
            n_cut=models[name].n_cut,
            n_copies=len(samples) - len({copies[sample.item] for sample in samples}),
            gen_kwargs=(config.gen_kwargs or None) if task.OUTPUT_TYPE == "generate_until" else None,
        )
    subsets = {None: {name: task.samples for name, task in tasks.items()}} | ({"clean": clean} if clean else {})
    return [*group_results(loaded.groups, output, tasks, subsets), *tasks.values()]


def unclean_items(overlap: Path, task: Task) -> set[int]:
    """Return the indices of items that share a run of words with the training text, or are too short to tell.

    A task that is missing from the file of `gptstar data overlap --json` has none: all of its items count as clean.
    """
    name, n_items = task.config.task, len(task.eval_docs)
    try:
        known = read_json(overlap)["benchmarks"].get(name)
        if known is None:
            return set()
        n_known, items = known["items"], {*known["dirty"], *known["too_short"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"evaluation.overlap={overlap} was not written by `gptstar data overlap --json` ({with_type(error)}): "
            "write it with that command"
        ) from error
    if n_known != n_items:
        raise ConfigError(
            f"evaluation.overlap={overlap} covers {n_known:,} items of {name}, but it has {n_items:,} items here: run "
            "`gptstar data overlap` on the same file"
        )
    return items

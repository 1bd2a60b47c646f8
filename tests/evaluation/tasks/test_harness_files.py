"""The harness's own files of an evaluation, and its own table of them."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import make_table
from rich.console import Console

from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.harness_files import BOOTSTRAP_ITERS, write_harness_files
from gptstar.evaluation.tasks.offline import load
from gptstar.evaluation.tasks.suite import evaluate_and_report
from support.harness import LENGTH, bpe, checkpoint, hf, wanted, write_mmlu
from support.text import write_tasks_files

NAMES_AND_TIMES = {
    *("date", "total_evaluation_time_seconds", "model_source", "model_name", "model_name_sanitized", "config"),
    *("git_hash", "pretty_env_info"),
}
"""Of a results file; what `config` says is compared key by key."""

TASKS = ("mmlu_other", "lambada_openai", "wikitext", "piqa", "winogrande")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gptstar.evaluation.tasks.registry import leaves, manager_for

    names = sorted(leaves("mmlu_other", manager_for(["mmlu_other"])))
    return write_tasks_files(
        write_mmlu(tmp_path_factory.mktemp("items"), [name.removeprefix("mmlu_") for name in names]), n_items=7
    )


@pytest.fixture(scope="module")
def ours(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ours") / "out"
    config = TasksConfig(tasks=TASKS, data_dir=folder, context_length=LENGTH)
    made = checkpoint(bpe())
    who = {"name": "a", "path": "/a.ckpt", "sha256": "0" * 64, "n_params": made.model.n_params}
    evaluate_and_report(who, made, config, torch.device("cpu"), output, Console(quiet=True))
    return output


@pytest.fixture(scope="module")
def theirs(folder: Path, tmp_path_factory: pytest.TempPathFactory, transformers_offline: None) -> Path:
    """Written as the harness's command writes them."""
    output = tmp_path_factory.mktemp("theirs")
    tracker = EvaluationTracker(output_path=str(output / "results.json"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DISABLE_MULTIPROC", "1")
        found = lm_eval.simple_evaluate(
            hf(checkpoint(bpe()), output / "exported"),
            **wanted(load(TASKS, folder)),
            batch_size=None,
            evaluation_tracker=tracker,
            fewshot_as_multiturn=False,
            bootstrap_iters=BOOTSTRAP_ITERS,
            random_seed=1234,
        )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for task in found["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return output


def results_in(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("results_*.json")
    return json.loads(file.read_text())


def samples_in(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        file.name.rsplit("_", 1)[0]: [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(folder.glob("samples_*.jsonl"))
    }


def approximately(tree: Any) -> Any:
    """Numbers to within rounding, and texts of numbers too."""
    if isinstance(tree, dict):
        return {key: approximately(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [approximately(value) for value in tree]
    if isinstance(tree, str):
        try:
            tree = float(tree)
        except ValueError:
            return tree
    return pytest.approx(tree, rel=1e-4, abs=1e-6) if isinstance(tree, float) else tree


def numbers(tree: Any) -> Any:
    """Texts of numbers as numbers."""
    if isinstance(tree, dict):
        return {key: numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [numbers(value) for value in tree]
    try:
        return float(tree) if isinstance(tree, str) else tree
    except ValueError:
        return tree


@pytest.mark.slow
def test_results_are_those_of_the_hf_model(ours: Path, theirs: Path) -> None:
    mine, its = results_in(ours), results_in(theirs)
    assert set(mine) == set(its)
    assert list(mine["groups"]) == ["mmlu_other"]
    for key in set(its) - NAMES_AND_TIMES:
        assert numbers(mine[key]) == approximately(its[key]), key
    assert set(mine["config"]) == set(its["config"])
    for key in set(its["config"]) - {"model", "model_args", "model_sha", "device"}:
        assert mine["config"][key] == its["config"][key], key
    error = its["results"]["lambada_openai"]["perplexity_stderr,none"]
    assert mine["results"]["lambada_openai"]["perplexity_stderr,none"] == pytest.approx(error, rel=1e-4)


@pytest.mark.slow
def test_samples_are_those_of_the_hf_model(ours: Path, theirs: Path) -> None:
    mine, its = samples_in(ours), samples_in(theirs)
    assert list(mine) == list(its)
    assert len(mine) == 13 + 4
    for task, entries in its.items():
        assert len(mine[task]) == len(entries)
        for one, other in zip(mine[task], entries, strict=True):
            assert numbers(one) == approximately(other), task


@pytest.mark.slow
def test_the_table_of_the_harness_reads_them(ours: Path, theirs: Path) -> None:
    for column in ("results", "groups"):
        table = make_table(results_in(ours), column)
        assert "other" in table
        assert [line.split("|")[1:6] for line in table.splitlines()] == [
            line.split("|")[1:6] for line in make_table(results_in(theirs), column).splitlines()
        ]


def test_what_the_harness_only_logs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output: dict[str, Any] = {"samples": {}, "date": 0.0, "config": {"model": "gptstar", "model_args": {"path": "a"}}}
    with pytest.raises(OSError, match="Could not save results aggregated: "):
        write_harness_files(output, tmp_path / "file/folder")

"""Groups of tasks: the harness's own scores of them, within our intervals."""

import functools
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import numpy as np
import pytest
from rich.console import Console

import gptstar
from gptstar.errors import ConfigError
from gptstar.evaluation.compare import compare_tasks
from gptstar.evaluation.comparison_tables import print_comparisons
from gptstar.evaluation.results import TaskResult, TaskResults, read_tasks, write_tasks
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.offline import Loaded, load
from gptstar.evaluation.tasks.panels import score_panels
from gptstar.evaluation.tasks.suite import prepared_tasks, score
from gptstar.evaluation.tasks.tables import task_markdown, task_table
from support.harness import LENGTH, bpe, checkpoint, hf, saved, wanted, write_mmlu
from support.text import QUIET

pytestmark = pytest.mark.usefixtures("no_network")

MMLU = Path(lm_eval.tasks.__file__).parent / "mmlu/default"
SUBJECTS = sorted(path.stem.removeprefix("mmlu_") for path in MMLU.glob("mmlu_*.yaml"))


@functools.cache  # finding a task among all of the harness's takes long
def prepared(task: str, folder: Path, num_fewshot: int | None = None) -> Loaded:
    return prepared_tasks(TasksConfig(tasks=(task,), data_dir=folder, num_fewshot=num_fewshot), None)


def ours(task: str, folder: Path, seed: int = 7, **choices: Any) -> TaskResults:
    tokenizer = bpe()
    config = replace(TasksConfig(tasks=(task,), data_dir=folder, context_length=LENGTH), **choices)
    loaded = prepared(task, folder, config.num_fewshot)
    who, model = {"name": f"model{seed}", "sha256": f"{seed:064x}"}, checkpoint(tokenizer, seed).build()
    scored = score(model, tokenizer, config, checkpoint=who, console=QUIET, tasks=loaded)
    assert scored is not None
    return scored.results


def theirs(model: Any, task: str, folder: Path, num_fewshot: int | None = None, **options: Any) -> dict[str, Any]:
    loaded = prepared(task, folder, num_fewshot)
    return lm_eval.simple_evaluate(model, **wanted(loaded), num_fewshot=num_fewshot, bootstrap_iters=9, **options)


def assert_equal(mine: TaskResults, harness: dict[str, Any]) -> None:
    groups = {task.task: task for task in mine.tasks if task.members}
    assert set(groups) == set(harness["groups"])
    for name, figures in harness["groups"].items():
        metric = groups[name].metrics[0]
        assert metric.name == "acc"
        assert metric.value == pytest.approx(figures["acc,none"], rel=1e-9)
        assert metric.items == figures["sample_len"]
        assert groups[name].version == harness["versions"][name]
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.value < metric.high
    tasks = {task.task: task.metrics[0].value for task in mine.tasks if not task.members}
    assert tasks == pytest.approx({name: harness["results"][name]["acc,none"] for name in tasks})


@pytest.fixture(scope="module")
def blimp(shared: Path) -> Path:
    return shared / "benchmarks/blimp"


@pytest.fixture(scope="module")
def of_blimp(blimp: Path) -> TaskResults:
    return ours("blimp", blimp, limit=3)


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert len(SUBJECTS) == 57
    return write_mmlu(tmp_path_factory.mktemp("mmlu"), SUBJECTS)


@pytest.fixture
def models(tmp_path: Path, transformers_offline: None) -> Callable[[], list[Any]]:
    """The harness's own model of the export, and ours by its Python interface."""

    def both() -> list[Any]:
        made = checkpoint(bpe())
        path = saved(made, tmp_path / "a.ckpt")
        return [hf(made, tmp_path / "exported"), gptstar.lm(path, context_length=LENGTH, device="cpu")]

    return both


@pytest.mark.slow
def test_blimp_has_the_score_of_the_harness(of_blimp: TaskResults, blimp: Path, models: Any) -> None:
    assert [task.task for task in of_blimp.tasks if task.members] == ["blimp"]
    assert len(of_blimp.tasks) == 68
    for model in models():
        assert_equal(of_blimp, theirs(model, "blimp", blimp, limit=3))


@pytest.mark.slow
def test_mmlu_and_the_groups_within_it_have_those_of_the_harness(mmlu: Path, models: Any) -> None:
    mine = ours("mmlu", mmlu)
    names = [task.task for task in mine.tasks if task.members]
    assert names == ["mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]
    assert sum(len(task.members) for task in mine.tasks[1:5]) == len(mine.tasks[0].members) == 57
    assert all(task.by_size == ("acc", "bits_per_byte") for task in mine.tasks[:5])
    for model in models():
        assert_equal(mine, theirs(model, "mmlu", mmlu))


@pytest.mark.slow
def test_examples_come_before_the_items_of_groups(mmlu: Path, models: Any) -> None:
    mine = ours("mmlu_stem", mmlu, num_fewshot=1)
    assert {task.num_fewshot for task in mine.tasks} == {1}
    assert_equal(mine, theirs(models()[1], "mmlu_stem", mmlu, num_fewshot=1))


def by_name(results: TaskResults) -> dict[str, TaskResult]:
    return {task.task: task for task in results.tasks}


@pytest.mark.slow
def test_the_interval_is_of_items_drawn_within_each_task(of_blimp: TaskResults) -> None:
    tasks = by_name(of_blimp)
    group = tasks["blimp"]
    acc, bits = group.metrics
    variances, in_bits = [], []
    for member in group.members:
        right = np.array([sample.scores["acc"] for sample in tasks[member].samples])
        variances.append(right.var(ddof=1) / len(right))
        pairs = np.array([sample.scores["bits_per_byte"] for sample in tasks[member].samples])
        in_bits.append(-pairs[:, 0].sum() / pairs[:, 1].sum() / math.log(2))
    error = math.sqrt(sum(variances)) / 67
    assert acc.low is not None
    assert (acc.value - acc.low) / error == pytest.approx(1.96, abs=0.12)  # copies would widen it: there are none
    assert acc.method == "bootstrap-t over items, stratified by task"
    assert bits.value == pytest.approx(np.mean(in_bits))
    assert bits.items == 3 * 67
    assert bits.kind == "bits_per_byte"
    assert bits.low is not None
    assert bits.low < bits.value


def test_groups_are_written_read_shown_and_drawn(of_blimp: TaskResults, tmp_path: Path) -> None:
    assert read_tasks(write_tasks(of_blimp, tmp_path)) == of_blimp
    markdown = task_markdown(of_blimp)
    assert "its 67 tasks" in markdown
    assert "blimp_wh_island" in markdown
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(task_table(of_blimp))
    shown = console.export_text()
    assert re.search(r"\bblimp +acc ", shown)
    assert "blimp_wh_island" not in shown
    assert "results.md has the 67 tasks of the groups" in shown
    assert len(score_panels([of_blimp])) == 1


def test_groups_are_compared_as_one(of_blimp: TaskResults, blimp: Path) -> None:
    other = ours("blimp", blimp, seed=8, limit=3)
    found = compare_tasks((of_blimp, other))
    rows = {(row.task, row.metric): row for row in found.rows[0]}
    primary = [key for key, row in rows.items() if row.primary]
    assert primary == [("blimp", "acc")]
    row = rows["blimp", "acc"]
    a, b = (by_name(each)["blimp"].metrics[0].value for each in (of_blimp, other))
    assert (row.a, row.b, row.difference) == pytest.approx((a, b, b - a))
    assert row.p == row.p_holm
    assert row.low is not None
    assert row.low < b - a
    bits = rows["blimp", "bits_per_byte"]
    a, b = (by_name(each)["blimp"].metrics[1].value for each in (of_blimp, other))
    assert bits.difference == pytest.approx(b - a)
    assert len(rows) == 2 * 68
    console = Console(width=100, record=True, file=io.StringIO())
    print_comparisons(compare_tasks((of_blimp, other)), console)
    shown = console.export_text()
    assert "blimp_" not in shown
    assert "blimp acc" in shown


def test_groups_of_other_tasks_are_not_compared(of_blimp: TaskResults) -> None:
    group = of_blimp.tasks[0]
    fewer = replace(of_blimp, tasks=(replace(group, members=group.members[1:]), *of_blimp.tasks[1:]))
    with pytest.raises(ConfigError, match=r"blimp can't be compared: its list of tasks"):
        compare_tasks((of_blimp, fewer))
    without = replace(of_blimp, tasks=(group, *of_blimp.tasks[2:]))
    with pytest.raises(ConfigError, match=f"the results lack its task {group.members[0]}"):
        compare_tasks((without, without))
    older = replace(of_blimp, tasks=of_blimp.tasks[1:])
    assert len([row for row in compare_tasks((older, of_blimp)).rows[0] if row.primary]) == 67


@pytest.mark.slow
def test_a_task_that_is_named_beside_its_group_is_there_once(blimp: Path) -> None:
    loaded = load(["blimp_causative", "blimp"], blimp)
    assert len(loaded.tasks) == 67
    assert list(loaded.groups) == ["blimp"]

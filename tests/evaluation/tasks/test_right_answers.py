"""Bits per byte of right answers, by hand: one forward for each answer, nats over bytes over ln 2."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.evaluation.compare import compare_tasks
from gptstar.evaluation.results import Metric, TaskResult, TaskResults
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.suite import score
from gptstar.model import GPT
from support.harness import LENGTH, bpe, checkpoint
from support.text import QUIET, write_tasks_files

SEVERAL = """
task: several
dataset_path: several
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: "{{right}}"
doc_to_choice: "{{choices}}"
metadata: {version: 1.0}
"""


def nats(model: GPT, tokenizer: Tokenizer, context: str, answer: str) -> float:
    before, whole = (tokenizer.encode([text])[0].tolist() for text in (context, context + answer))
    tokens = torch.tensor(whole)
    assert whole[: len(before)] == before
    with torch.inference_mode():
        logits = model(tokens[None, :-1])[0].double().log_softmax(-1)
    return -sum(float(logits[place - 1, whole[place]]) for place in range(len(before), len(whole)))


def by_hand(model: GPT, tokenizer: Tokenizer, answers: list[tuple[str, str]]) -> float:
    n_bytes = sum(len(answer.encode()) for _, answer in answers)
    return sum(nats(model, tokenizer, *each) for each in answers) / n_bytes / math.log(2)


def evaluated(folder: Path, *tasks: str, seed: int = 7, **choices: Any) -> TaskResults:
    config = TasksConfig(tasks=tasks, data_dir=folder, context_length=LENGTH, **choices)
    who = {"name": f"model{seed}", "sha256": f"{seed:064x}"}
    scored = score(checkpoint(bpe(), seed).build(), bpe(), config, checkpoint=who, console=QUIET)
    assert scored is not None
    return scored.results


def bits(task: TaskResult) -> Metric:
    (found,) = [metric for metric in task.metrics if metric.name == "bits_per_byte"]
    return found


def test_they_are_those_by_hand(tmp_path: Path) -> None:
    folder, model, tokenizer = write_tasks_files(tmp_path), checkpoint(bpe()).build().eval(), bpe()
    rows = {
        task: [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]
        for task in ("piqa", "winogrande")
    }
    answers = {
        "piqa": [
            (f"Question: {row['goal']}\nAnswer:", f" {row['sol2' if row['label'] else 'sol1']}") for row in rows["piqa"]
        ],
        "winogrande": [
            (row["sentence"].partition("_")[0] + row[f"option{row['answer']}"], row["sentence"].partition("_")[2])
            for row in rows["winogrande"]
        ],
    }
    assert answers["winogrande"][0][1].startswith(" ")
    for task in evaluated(folder, "piqa", "winogrande").tasks:
        metric = bits(task)
        assert metric.value == pytest.approx(by_hand(model, tokenizer, answers[task.task]), rel=1e-5)
        assert metric.kind == "bits_per_byte"
        assert not metric.higher_is_better
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.value < metric.high
        assert task.metrics[0].name == "acc"  # which stays the first, by which tasks are compared


def test_of_several_right_answers_the_likeliest_by_byte_counts(tmp_path: Path) -> None:
    (tmp_path / "several.yaml").write_text(SEVERAL)
    row = {"text": "the cat", "right": [0, 2], "choices": ["sat", "ran away", "slept"]}
    (tmp_path / "several.jsonl").write_text((json.dumps(row) + "\n") * 2)
    model, tokenizer = checkpoint(bpe()).build().eval(), bpe()
    least = min(by_hand(model, tokenizer, [("the cat", f" {row['choices'][right]}")]) for right in row["right"])
    (task,) = evaluated(tmp_path, "several", include_path=tmp_path).tasks
    assert bits(task).value == pytest.approx(least, rel=1e-5)


def test_they_are_compared_in_pairs(tmp_path: Path) -> None:
    folder = write_tasks_files(tmp_path)
    a, b = (evaluated(folder, "piqa", seed=seed) for seed in (7, 8))
    rows = {row.metric: row for row in compare_tasks((a, b)).rows[0]}
    assert rows["bits_per_byte"].difference == pytest.approx(bits(b.tasks[0]).value - bits(a.tasks[0]).value)
    assert rows["bits_per_byte"].p is not None
    assert [name for name, row in rows.items() if row.primary] == ["acc"]

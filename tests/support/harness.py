"""Models as the harness takes them: random ones of ours, and its own `hf` model of their exports."""

import json
from pathlib import Path
from typing import Any

import torch
from lm_eval.tasks import TaskManager

from gptstar.checkpoint.format import Checkpoint, write
from gptstar.checkpoint.huggingface.export import export
from gptstar.data.tokenizer import Tokenizer
from gptstar.evaluation.tasks.offline import Loaded
from gptstar.model import GPT, GPTConfig
from support.text import sentences

LENGTH = 160


def bpe() -> Tokenizer:
    return Tokenizer.train(sentences(60, 80, seed=1), 300)


def checkpoint(tokenizer: Tokenizer, seed: int = 7) -> Checkpoint:
    """Random weights, large enough that some tokens are far likelier than others."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(n_vocab=tokenizer.n_vocab, n_layers=2, d_model=60, n_heads=6)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return Checkpoint(model.config, model.state_dict(), tokenizer.json_text)


def saved(made: Checkpoint, path: Path) -> Path:
    write(path, made)
    return path


def hf(made: Checkpoint, folder: Path) -> Any:
    """The harness's own model, of an exported folder."""
    from lm_eval.models.huggingface import HFLM

    export(made, folder, context_length=LENGTH)
    return HFLM(
        pretrained=str(folder), trust_remote_code=True, dtype="float32", device="cpu", batch_size=5, max_length=LENGTH
    )


def wanted(loaded: Loaded) -> dict[str, Any]:
    """Arguments of `simple_evaluate` for tasks and the outermost groups, whose items are here."""
    inner = {group.name for each in loaded.groups.values() for group in each.get_all_groups()}
    groups = [group for name, group in loaded.groups.items() if name not in inner]
    grouped = {task.task_name for group in groups for task in group.get_all_tasks()}
    tasks = [task for task in loaded.tasks if task.task_name not in grouped]
    return {"tasks": [*groups, *tasks], "task_manager": TaskManager(include_defaults=False)}


def write_mmlu(folder: Path, subjects: list[str]) -> Path:
    """Items of each subject, 2 to 4 of them, in the Hub's columns, and an example for few-shot prompts."""
    texts = iter(sentences(40 * len(subjects), 5, seed=3))
    for number, subject in enumerate(subjects):
        rows = []
        for item in range(3 + number % 3):
            choices = [next(texts) for _ in range(4)]
            rows.append({"question": next(texts), "subject": subject, "choices": choices, "answer": item % 4})
        (folder / f"mmlu_{subject}").mkdir(parents=True)
        (folder / f"mmlu_{subject}/dev.jsonl").write_text(json.dumps(rows[0]) + "\n")
        (folder / f"mmlu_{subject}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    return folder

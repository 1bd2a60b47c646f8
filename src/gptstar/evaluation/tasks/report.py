"""A checkpoint on tasks: scored, shown beside the published rows, and written down."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gptstar.checkpoint.format import Checkpoint
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.results import write_tasks
from gptstar.evaluation.tasks.config import TasksConfig
from gptstar.evaluation.tasks.pictures import plot_tasks
from gptstar.evaluation.tasks.published import published_rows
from gptstar.evaluation.tasks.suite import evaluate_tasks
from gptstar.evaluation.tasks.tables import task_markdown, task_table


def evaluate_and_report(
    who: Mapping[str, Any],
    checkpoint: Checkpoint,
    config: TasksConfig,
    device: torch.device,
    output: Path,
    console: Console,
) -> None:
    """Score a checkpoint, print a table, and write `results.json`, `results.md` and `results.png`.

    Args:
        who: the checkpoint's identity.

    Raises:
        Refusal: as `evaluate_tasks`.
    """
    tokenizer = Tokenizer(checkpoint.tokenizer) if checkpoint.tokenizer else None
    model = checkpoint.build().to(device)
    results = evaluate_tasks(model, tokenizer, config, checkpoint=who, console=console)
    if results is None:
        return
    published = published_rows()
    console.print(task_table(results, published))  # first, so that a full disk does not take it all
    try:
        write_tasks(results, output)
        (output / "results.md").write_text(task_markdown(results, published), encoding="utf-8")
        plot_tasks(results, published, output / "results.png")
    except OSError as error:
        raise ConfigError(
            f"can't write all results into {output} ({error.strerror or error}): make room there"
        ) from error
    console.print(f"in {output}: results.json, results.md, results.png", soft_wrap=True, highlight=False)

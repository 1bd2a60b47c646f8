"""Which items of a task the training text holds, as `gptstar data overlap --json` found."""

import json
from pathlib import Path

from lm_eval.api.task import Task

from gptstar.errors import ConfigError


def left_out(overlap: Path, task: Task) -> set[int]:
    """Numbers of the items that share a run of words with the training text, or are too short to tell.

    A task that the file does not know has none, so its clean items are all.

    Raises:
        ConfigError: the file is not what it should be, or is about other items.
    """
    name, n_items = task.config.task, len(task.eval_docs)
    try:
        known = json.loads(overlap.read_text(encoding="utf-8"))["benchmarks"].get(name)
        if known is None:
            return set()
        items, rows = known["items"], {*known["dirty"], *known["too_short"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"evaluation.overlap={overlap} is not what `gptstar data overlap --json` writes ({error!r})"
        ) from error
    if items != n_items:
        raise ConfigError(
            f"evaluation.overlap={overlap} is about {items:,} items of {name}, which has {n_items:,} here: run "
            "`gptstar data overlap` on the same file"
        )
    return rows

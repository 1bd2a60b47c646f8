"""Names of tasks, groups and tags of lm-evaluation-harness, and the files that define them."""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.config import SUITE

FOLDERS = ("lambada", "wikitext", "piqa", "hellaswag", "winogrande")
"""Of the harness, with the tasks of `SUITE`: reading all 15,000 files takes seconds."""


def manager_for(names: Sequence[str]) -> TaskManager:
    """The harness's registry, of which at least these names are part.

    Raises:
        ConfigError: there is no such task, group or tag; names the nearest.
    """
    root = Path(lm_eval.tasks.__file__).parent
    with quiet():
        if set(names) <= set(SUITE):
            manager = TaskManager(include_path=[root / folder for folder in FOLDERS], include_defaults=False)
            if set(names) <= set(manager.all_tasks):
                return manager
        manager = TaskManager()
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise ConfigError(f"evaluation.tasks: lm-evaluation-harness has no task {name!r}: {hint}")
    return manager


def leaves(name: str, manager: TaskManager) -> Iterator[str]:
    """The tasks that a name stands for: itself, or those of a group or tag.

    Raises:
        ConfigError: a group defines a task within itself, which local files can't stand for.
    """
    index = manager.task_index
    entry = index[name]
    if name in manager.all_subtasks:
        yield name
    elif name in manager.all_tags:
        yield from sorted(entry.tags)
    else:
        yield from _members((entry.cfg or {}).get("task", []), name, manager)


def _members(items: Sequence[str | dict[str, Any]], group: str, manager: TaskManager) -> Iterator[str]:
    for item in items:
        names = item if isinstance(item, dict) else {"task": item}
        child = names.get("group", names.get("task"))
        if isinstance(child, str) and child in manager.task_index:
            yield from leaves(child, manager)
        elif isinstance(names.get("task"), list):
            yield from _members(names["task"], group, manager)
        else:
            raise ConfigError(
                f"evaluation.tasks: the group {group} defines {child!r} within itself, which local files can't stand "
                "for: name its other tasks one by one"
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness's notes on its own files are not for users."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

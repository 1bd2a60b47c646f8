"""The registry of tasks, groups and tags of lm-evaluation-harness, and the files that define them."""

import contextlib
import difflib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.config import SUITE
from gptstar.files import file_sha256

FOLDERS = ("lambada", "wikitext", "piqa", "hellaswag", "winogrande")
"""The harness's folders with the tasks of `SUITE`; reading all of its 15,000 files would take seconds."""


def manager_for(
    names: Sequence[str], include_path: Path | None = None, metadata: Mapping[str, Any] | None = None
) -> TaskManager:
    """Return a registry of the harness that contains the given names, and the user's own tasks in `include_path`.

    Args:
        names: the names of tasks, groups or tags.
        include_path: a folder with definitions of the user's own tasks.
        metadata: options that the harness passes to the code of tasks that generate their items.

    Raises:
        ConfigError: a task, group or tag does not exist; the message names the nearest. Or a task of the user has the
            name of a task with published results.
    """
    root = Path(lm_eval.tasks.__file__).parent
    own = [] if include_path is None else [include_path.resolve()]  # definitions include each other by paths
    with quiet():
        given = dict(metadata or {})
        paths = [*(root / folder for folder in FOLDERS), *own]
        manager = TaskManager(include_path=paths, include_defaults=False, metadata=given)
        for name in SUITE:
            if root not in Path(manager.task_index[name].yaml_path or "").parents:
                raise ConfigError(
                    f"evaluation.include_path={include_path} defines {name}, which is a task of the harness with "
                    "published figures: give yours another name"
                )
        if not set(names) <= set(manager.all_subtasks):  # a group's members may be in other folders
            manager = TaskManager(include_path=own, metadata=given)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists the harness's tasks"
            where = f"neither lm-evaluation-harness nor evaluation.include_path={include_path} has the task {name!r}"
            if not own:
                where = f"lm-evaluation-harness has no task {name!r}"
                hint += "; for your own task give evaluation.include_path=FOLDER"
            raise ConfigError(f"evaluation.tasks: {where}: {hint}")
    return manager


def definitions(include_path: Path) -> dict[str, str]:
    """Return the folder of the user's tasks with a hash of its definitions and code, for the results."""
    digest = hashlib.sha256()
    for path in sorted(each for each in include_path.rglob("*") if each.suffix in (".yaml", ".yml", ".py")):
        digest.update(f"{path.relative_to(include_path).as_posix()} {file_sha256(path)}\n".encode())
    return {"path": str(include_path), "sha256": digest.hexdigest()}


def leaves(name: str, manager: TaskManager) -> Iterator[str]:
    """Yield the tasks behind a name: the task itself, or the members of a group or tag.

    Raises:
        ConfigError: a group defines a task inline, which local files can't replace.
    """
    entry = manager.task_index[name]
    if name in manager.all_tags:
        yield from sorted(entry.tags)
    elif name in manager.all_groups:
        members = list(entry.cfg.get("task", []))
        for member in members:
            child = member.get("group", member.get("task")) if isinstance(member, dict) else member
            if isinstance(child, str) and child in manager.task_index:
                yield from leaves(child, manager)
            elif isinstance(member, dict) and isinstance(member.get("task"), list):
                members += member["task"]  # a group that is defined inline
            else:
                raise ConfigError(
                    f"evaluation.tasks: the group {name} defines {child!r} inline, which local files can't replace: "
                    "name its other tasks one by one"
                )
    else:
        yield name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the harness's messages about its own files."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

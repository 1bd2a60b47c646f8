"""Names of tasks, groups and tags of lm-evaluation-harness, and the files that define them."""

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
"""Of the harness, with the tasks of `SUITE`: reading all 15,000 files takes seconds."""


def manager_for(
    names: Sequence[str], include_path: Path | None = None, metadata: Mapping[str, Any] | None = None
) -> TaskManager:
    """The harness's registry, of which at least these names are part; also of the user's own tasks in `include_path`.

    Args:
        metadata: what the harness hands to the code of tasks that make their items.

    Raises:
        ConfigError: there is no such task, group or tag; names the nearest. Or a task of the user's has the name of one
            that has published rows.
    """
    root = Path(lm_eval.tasks.__file__).parent
    own = [] if include_path is None else [include_path.resolve()]  # definitions include each other from elsewhere
    with quiet():
        given = dict(metadata or {})
        paths = [*(root / folder for folder in FOLDERS), *own]
        manager = TaskManager(include_path=paths, include_defaults=False, metadata=given)
        for name in SUITE:
            if root not in Path(manager.task_index[name].yaml_path or "").parents:
                raise ConfigError(
                    f"evaluation.include_path={include_path} defines {name}, beside which published figures of the "
                    "harness's task are shown: give yours another name"
                )
        if not set(names) <= set(manager.all_subtasks):  # a group's members may be anywhere
            manager = TaskManager(include_path=own, metadata=given)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists the harness's"
            where = f"neither lm-evaluation-harness nor evaluation.include_path={include_path} has the task {name!r}"
            if not own:
                where = f"lm-evaluation-harness has no task {name!r}"
                hint += "; for a task of your own give evaluation.include_path=FOLDER"
            raise ConfigError(f"evaluation.tasks: {where}: {hint}")
    return manager


def definitions(include_path: Path) -> dict[str, str]:
    """The folder of the user's tasks, and a hash of the definitions and the code in it, for the results."""
    digest = hashlib.sha256()
    for path in sorted(each for each in include_path.rglob("*") if each.suffix in (".yaml", ".yml", ".py")):
        digest.update(f"{path.relative_to(include_path).as_posix()} {file_sha256(path)}\n".encode())
    return {"path": str(include_path), "sha256": digest.hexdigest()}


def leaves(name: str, manager: TaskManager) -> Iterator[str]:
    """The tasks that a name stands for: itself, or those of a group or tag.

    Raises:
        ConfigError: a group defines a task within itself, which local files can't stand for.
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
                members += member["task"]  # a group that is defined within this one
            else:
                raise ConfigError(
                    f"evaluation.tasks: the group {name} defines {child!r} within itself, which local files can't "
                    "stand for: name its other tasks one by one"
                )
    else:
        yield name


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

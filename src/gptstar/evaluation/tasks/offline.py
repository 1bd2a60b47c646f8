"""Tasks of lm-evaluation-harness with items from local files or the Hub, and with the harness's own preprocessing."""

import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import jinja2
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from gptstar.errors import ConfigError, DataError, Refusal, with_type
from gptstar.evaluation.tasks import local_files
from gptstar.evaluation.tasks.code import load_definition, refusal_of_code
from gptstar.evaluation.tasks.hub import revision_of, without_waiting
from gptstar.evaluation.tasks.local_files import COLUMNS, as_harness_dataset
from gptstar.evaluation.tasks.manifest import dataset_of, find_items
from gptstar.evaluation.tasks.published import licence_of
from gptstar.evaluation.tasks.registry import leaves, manager_for, quiet

KEY = "gptstar"
"""The key in a task's `dataset_kwargs` that holds the source of its items."""

TWINS = 0.7
"""The least share of common words of Winogrande twins: true twins have 0.8, other pairs less than 0.5."""


@dataclass(frozen=True)
class Loaded:
    """Loaded tasks, each once, and the requested groups with the groups inside them."""

    tasks: list[Task]
    groups: dict[str, Group]


def load_tasks(
    names: Sequence[str],
    data_dir: Path | None,
    *,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
) -> list[Task]:
    """Load tasks as `load` does, and return them without the groups."""
    return load(names, data_dir, num_fewshot=num_fewshot, include_path=include_path).tasks


def load(
    names: Sequence[str],
    data_dir: Path | None,
    *,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Loaded:
    """Build tasks, and those of groups and tags, for `lm_eval.evaluator.evaluate`: in the order of `names`, each once.

    Args:
        names: names of tasks, groups and tags.
        data_dir: a folder with `TASK.jsonl` or `TASK/SPLIT.jsonl` for each task (also .jsonl.gz, .jsonl.zst, .parquet),
            with the columns of its dataset on the Hub; None to load the items from the Hub.
        num_fewshot: the number of few-shot examples; None for each task's default. Files need another split for them.
        include_path: a folder with the user's own tasks.
        metadata: options that the harness passes to the code of tasks that generate their items.

    Raises:
        ConfigError: a task does not exist, reads its own data, or has code that needs a package or file.
        DataError: items are missing, damaged or unsuitable for the task; or the Hub is unreachable.
    """
    manager = manager_for(names, include_path, metadata)
    datasets.disable_progress_bars()
    tasks: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    with quiet(), without_waiting() if data_dir is None else contextlib.nullcontext():
        if data_dir is not None:
            for leaf in dict.fromkeys(leaf for name in names for leaf in leaves(name, manager)):
                manager.task_index[leaf] = _on_local_files(manager.task_index[leaf], data_dir, num_fewshot)
        for name in dict.fromkeys(names):
            built = _built(name, manager)
            tasks |= {task.config.task: task for task in built.tasks}
            groups |= built.groups
    for task in tasks.values():
        if data_dir is not None and task.config.task not in COLUMNS:
            _try_every_item(task)
    return Loaded(list(tasks.values()), groups)


def splits_of(config: Mapping[str, Any], num_fewshot: int | None) -> tuple[list[str], list[str]]:
    """Return the splits from which a task takes items, by its definition, and the other splits that it names.

    The first is evaluated. A second one, if few-shot examples need it, provides these.

    Raises:
        ConfigError: the task reads its own data.
    """
    named = [config.get(f"{kind}_split") for kind in ("training", "validation", "test")]
    evaluated = named[2] or named[1]
    if evaluated is None:
        raise ConfigError(
            f"evaluation.tasks: {config['task']} reads its own data, which local files can't replace: leave it out"
        )
    few_shot = config.get("fewshot_config") or {}
    source = few_shot.get("split") or config.get("fewshot_split") or next(filter(None, named))  # the harness's rule
    own = config.get("num_fewshot")  # a 0 stays, as in the harness
    n_examples = (own or 0) if num_fewshot is None or own == 0 else num_fewshot
    used = [evaluated]
    if n_examples > 0 and not few_shot.get("samples") and source != evaluated:
        used.append(source)
    return used, [split for split in dict.fromkeys((*named, source)) if split and split not in used]


def _on_local_files(definition: Any, data_dir: Path, num_fewshot: int | None) -> Any:
    """Return a task's entry in the harness's registry with local files as the source of its items."""
    key, config, files = "evaluation.data_dir", definition.cfg, {}
    used, absent = splits_of(config, num_fewshot)
    for split in used:
        is_evaluated = split == used[0]
        files[split] = find_items(key, data_dir, config, split, evaluated=is_evaluated, num_fewshot=num_fewshot)
    paths = {split: file["path"] for split, file in files.items()}
    local = {"task": definition.name, "files": paths, "absent": absent, "source": files[used[0]]}
    config = load_definition(definition.name, definition.yaml_path)
    config |= {"custom_dataset": as_harness_dataset, "dataset_kwargs": {KEY: local}}
    return replace(definition, yaml_path=None, cfg=config)


def _built(name: str, manager: TaskManager) -> Loaded:
    """Build a task, or the tasks of a group or tag; an error names the task that can't be built."""
    try:
        built = manager.load([name])
        return Loaded(list(built["tasks"].values()), built["groups"])
    except Refusal:
        raise
    except Exception as error:  # the harness and `datasets` have no common base of errors
        for leaf in leaves(name, manager):
            if leaf != name:
                _built(leaf, manager)  # one of them fails with an error that names it
        config = manager.task_index[name].cfg or {}
        local = (config.get("dataset_kwargs") or {}).get(KEY)
        if local is not None:
            rows = local_files.read(Path(local["source"]["path"]), name)
            part = _missing_part(error)
            where, row = next(((where, row) for where, row in rows if part in row.values()), rows[0])
            raise _unusable(local["source"]["path"], where if part else None, name, row, error) from error
        if (refusal := refusal_of_code(name, config, manager.task_index[name].yaml_path, error)) is not None:
            raise refusal from error
        reason = with_type(error)
        if isinstance(error, ConnectionError):
            reason = "the Hub is unreachable, and its cache lacks them"
        raise DataError(
            f"the items of {name}, {dataset_of(config)} on the Hub, can't be loaded ({reason}): on a machine with a "
            f"network run `gptstar evaluation bundle DIR --tasks {name}`, then give evaluation.data_dir=DIR here"
        ) from error


def _missing_part(error: Exception) -> str | None:
    """Return the column, or the part of a value, that the harness's code did not find."""
    quoted = re.findall(r"'([^']*)'", str(error)) if isinstance(error, KeyError | jinja2.UndefinedError) else []
    return quoted[-1] if quoted else None


def _unusable(path: str, where: str | None, task: str, row: Mapping[str, Any], error: Exception) -> DataError:
    """Return the error for an item that the harness's code can't use, from the error that the code raised."""
    part = _missing_part(error)
    if part is not None and part not in row.values():
        where, row = next((each for each in local_files.items(Path(path)) if part not in each[1]), (where, row))
        problem = f"no column {part!r}, which {task} needs; it has {', '.join(row)}"
    else:
        problem = f"{task} can't use it ({with_type(error)})"
    return DataError(f"{path}, {where}: {problem}" if where else f"{path}: {problem}")


def _try_every_item(task: Task) -> None:
    """Run the harness's own functions for text, target and choices on each item; an error names file and line."""
    name, source = task.config.task, task.config.dataset_kwargs[KEY]["source"]
    rows = local_files.read(Path(source["path"]), name)
    documents = task.eval_docs
    for column in (task.config.doc_to_text, task.config.doc_to_target, task.config.doc_to_choice):
        if isinstance(column, str) and column.isidentifier() and column not in documents.features:
            # the harness uses an unknown column's name as the text
            raise _unusable(source["path"], rows[0][0], name, rows[0][1], KeyError(column))
    is_every_row = len(documents) == len(rows)
    for number, document in enumerate(documents):
        try:
            task.doc_to_text(document)
            target = task.doc_to_target(document)
            choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
            if choices and isinstance(target, int) and not task.multiple_input and not 0 <= target < len(choices):
                raise ValueError(f"answer {target} of {len(choices)} choices")
        except Exception as error:  # a task's code may raise anything
            where = rows[number][0] if is_every_row else f"item {number + 1} after the task's own selection"
            raise _unusable(source["path"], where, name, document, error) from error


def source_of(task: Task) -> dict[str, Any]:
    """Describe the source of a task's items.

    Returns:
        A mapping with `dataset`, `config`, `revision`, `licence` and `split`, if known; `stands_for`, the split that
        the harness evaluates; `rows`; and for a local file its `path` and `sha256`.
    """
    config = task.config
    split = config.test_split or config.validation_split
    source = {"dataset": config.dataset_path, "config": config.dataset_name, "stands_for": split}
    local = (config.dataset_kwargs or {}).get(KEY)
    if local is not None:
        return source | local["source"] | {"rows": len(task.dataset[split])}
    items = task.dataset[split] if isinstance(task, ConfigurableTask) and split else task.eval_docs
    revision = revision_of(items) if isinstance(items, datasets.Dataset) else None
    return source | {"revision": revision, "licence": licence_of(config.task), "split": split, "rows": len(items)}


def item_hash(document: Mapping[str, Any], task: str = "") -> str:
    """Return the sha256 of an item, which does not depend on its file or place.

    In the default suite it covers only the columns that the task reads, so that a file without the other columns gives
    the same hashes as the Hub.
    """
    columns = sorted(COLUMNS.get(task, document))
    canonical = json.dumps([[column, document[column]] for column in columns], ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def clusters_of(task_name: str, documents: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the cluster of each item; items of one cluster are not independent.

    Many of Winogrande's sentences come as twins that differ by a word or two and have the same two options: 168 pairs
    among 760 items of its validation split. HellaSwag's items of one video or article share a `source_id`. In other
    tasks each item is its own cluster, until copies are joined.
    """
    clusters = list(range(len(documents)))
    if task_name.startswith("hellaswag"):
        first: dict[str, int] = {}
        return [first.setdefault(document.get("source_id") or f"#{n}", n) for n, document in enumerate(documents)]
    if task_name.startswith("winogrande"):
        alike: dict[frozenset[str], list[int]] = {}
        words = [document["sentence"].lower().split() for document in documents]
        for number, document in enumerate(documents):
            options = frozenset((document["option1"].lower(), document["option2"].lower()))
            for other in alike.setdefault(options, []):
                if difflib.SequenceMatcher(None, words[other], words[number], autojunk=False).ratio() >= TWINS:
                    clusters[number] = clusters[other]
                    break
            alike[options].append(number)
    return clusters

"""Tasks of lm-evaluation-harness on items from local files, or from the Hub; with the harness's own preprocessing."""

import difflib
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import jinja2
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from gptstar.errors import ConfigError, DataError, Refusal
from gptstar.evaluation.tasks import local_files
from gptstar.evaluation.tasks.hub import revision_of, without_waiting
from gptstar.evaluation.tasks.local_files import COLUMNS, as_harness_dataset
from gptstar.evaluation.tasks.manifest import ORIGINS, read_manifest, verified
from gptstar.evaluation.tasks.registry import leaves, manager_for, quiet

KEY = "gptstar"
"""In a task's `dataset_kwargs`: where its items are from."""

TWINS = 0.7
"""Share of words in common from which two Winogrande sentences are twins: real ones have 0.8, others below 0.5."""


def load_tasks(
    names: Sequence[str],
    data_dir: Path | None,
    *,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
) -> list[Task]:
    """Tasks ready for `lm_eval.evaluator.evaluate`, in the order of their names, each once.

    Args:
        names: of tasks, groups and tags.
        data_dir: a folder with `TASK.jsonl` for each, or `TASK/SPLIT.jsonl` (also .jsonl.gz, .jsonl.zst, .parquet), in
            the columns of its dataset on the Hub; None to load them from the Hub.
        num_fewshot: examples before each item; what each task says unless given. They need another split's file.
        include_path: a folder with definitions of the user's own tasks.

    Raises:
        ConfigError: no such task, or one that reads its own data.
        DataError: items that are missing, damaged or not as the task needs them; or the Hub is out of reach.
    """
    manager = manager_for(names, include_path)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, quiet():
        if data_dir is not None:
            wanted = list(dict.fromkeys(leaf for name in names for leaf in leaves(name, manager)))
            for number, leaf in enumerate(wanted):
                yaml = _on_local_files(leaf, manager, data_dir, num_fewshot)
                Path(folder, f"{number}.yaml").write_text(yaml, encoding="utf-8")
            manager.task_index.update(TaskManager(include_path=folder, include_defaults=False).task_index)
            found = _built(names, manager)
        else:
            with without_waiting():
                found = _built(names, manager)
    for task in found:
        if data_dir is not None and task.config.task not in COLUMNS:
            _try_every_item(task)
    return found


def splits_of(
    task: str, manager: TaskManager, num_fewshot: int | None
) -> tuple[str, str | None, list[str], Mapping[str, Any]]:
    """Which splits a task takes items from.

    Returns:
        The one that is evaluated, the one that few-shot examples are from if any are needed, all others that it names,
        and its configuration.

    Raises:
        ConfigError: it reads its own data.
    """
    config = load_yaml(manager.task_index[task].yaml_path, resolve_func=False)
    named = [config.get(f"{kind}_split") for kind in ("training", "validation", "test")]
    evaluated = named[2] or named[1]
    if evaluated is None:
        raise ConfigError(
            f"evaluation.tasks: {task} reads its own data, which local files can't stand for: leave it out"
        )
    few_shot = config.get("fewshot_config") or {}
    source = few_shot.get("split") or config.get("fewshot_split")
    others = [split for split in (*named, source) if split not in (None, evaluated)]
    source = source or next(split for split in named if split)  # the harness's rule
    wanted = (config.get("num_fewshot") or 0) if num_fewshot is None else num_fewshot
    needs = wanted > 0 and not few_shot.get("samples") and source != evaluated
    return evaluated, source if needs else None, [split for split in others if not needs or split != source], config


def _on_local_files(task: str, manager: TaskManager, data_dir: Path, num_fewshot: int | None) -> str:
    """YAML that is the harness's own but for where the items are from."""
    evaluated, few_shot, absent, config = splits_of(task, manager, num_fewshot)
    files, source, manifest = {}, {}, read_manifest(data_dir)
    for split in (evaluated, few_shot):
        if split is None:
            continue
        path = local_files.find(data_dir, task, split, evaluated=split == evaluated)
        if path is None:
            name = f"{task}.jsonl" if split == evaluated else f"{task}/{split}.jsonl"
            what, more = "", ""
            if split != evaluated:
                what, more = ", which its few-shot examples are from", f" --num-fewshot {num_fewshot or 1}"
            raise DataError(
                f"evaluation.data_dir={data_dir} lacks {name}: the {split} split of {_dataset(config)}{what}; on a "
                f"machine with network `gptstar evaluation bundle DIR --tasks {task}{more}` fetches it"
            )
        sha256, entry = verified(data_dir, path, manifest)
        files[split] = str(path)
        if split == evaluated:
            source = {
                "path": str(path),
                "sha256": sha256,
                "split": entry.split if entry else split if path.parent != data_dir else None,
                "stands_for": split,
                "dataset": config.get("dataset_path"),
                "config": config.get("dataset_name"),
                "revision": entry.revision if entry else None,
                "licence": entry.licence if entry else ORIGINS[task].licence if task in ORIGINS else None,
            }
    kwargs = {KEY: {"task": task, "files": files, "absent": absent, "source": source}}
    return "\n".join(
        (
            f"include: {json.dumps(str(manager.task_index[task].yaml_path))}",
            "tag: null",
            f"custom_dataset: !function {as_harness_dataset.__module__}.{as_harness_dataset.__name__}",
            f"dataset_kwargs: {json.dumps(kwargs)}",
        )
    )


def _built(names: Sequence[str], manager: TaskManager) -> list[Task]:
    tasks: dict[str, Task] = {}
    for name in dict.fromkeys(names):
        try:
            tasks |= manager.load([name])["tasks"]
        except Refusal:
            raise
        except Exception as error:  # of the harness, of datasets and what they rest on: there is no common one
            raise _explained(name, manager, error) from error
    return list(tasks.values())


def _explained(name: str, manager: TaskManager, error: Exception) -> Refusal:
    """Why a task, group or tag could not be built."""
    for leaf in leaves(name, manager):
        if leaf != name:  # whichever of its tasks it was
            try:
                manager.load([leaf])
            except Refusal as refusal:
                return refusal
            except Exception as its:
                return _explained(leaf, manager, its)
    path = manager.task_index[name].yaml_path
    config = load_yaml(path, resolve_func=False) if path else {}
    local = (config.get("dataset_kwargs") or {}).get(KEY)
    if local is not None:
        file = Path(local["source"]["path"])
        rows = local_files.read(file, name)
        part = _part(error)
        where = next((where for where, row in rows if part in row.values()), rows[0][0] if part else "")
        return DataError(f"{file}{f', {where}' if where else ''}: {_what(error, name, rows[0][1])}")
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, ConnectionError):
        reason = "the Hub can't be reached, and they are not in its cache"
    return DataError(
        f"the items of {name}, {_dataset(config)} on the Hub, can't be had ({reason}): on a machine with network run "
        f"`gptstar evaluation bundle DIR --tasks {name}`, then give evaluation.data_dir=DIR here"
    )


def _dataset(config: Mapping[str, Any]) -> str:
    name = config.get("dataset_name")
    return f"{config.get('dataset_path', 'its dataset')}{f' ({name})' if name else ''}"


def _part(error: Exception) -> Any:
    """The column, or part of a value, that the harness's code looked for in vain."""
    if isinstance(error, KeyError) and error.args:
        return error.args[0]
    if isinstance(error, jinja2.UndefinedError):
        found = re.search(r"'(\w+)' is undefined|attribute '(\w+)'", str(error))
        return found and (found[1] or found[2])
    return None


def _what(error: Exception, task: str, row: Mapping[str, Any]) -> str:
    """What is wrong with an item, from what the harness's code made of it."""
    part = _part(error)
    if part is not None and part not in row.values():
        return f"no column {part!r}, which {task} needs; it has {', '.join(row)}"
    return f"{task} can't use it ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"


def _try_every_item(task: Task) -> None:
    """Ask the harness's own functions for text, target and choices of each item.

    Raises:
        DataError: they can't; names file and line.
    """
    name, source = task.config.task, task.config.dataset_kwargs[KEY]["source"]
    documents = task.eval_docs
    for column in (task.config.doc_to_text, task.config.doc_to_target, task.config.doc_to_choice):
        if isinstance(column, str) and column.isidentifier() and column not in documents.features:
            where, row = local_files.read(Path(source["path"]), name)[0]  # to the harness the name itself is the text
            raise DataError(f"{source['path']}, {where}: {_what(KeyError(column), name, row)}")
    for number, document in enumerate(documents):
        try:
            task.doc_to_text(document)
            target = task.doc_to_target(document)
            choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
            if choices and isinstance(target, int) and not task.multiple_input and not 0 <= target < len(choices):
                raise ValueError(f"answer {target} of {len(choices)} choices")
        except Exception as error:  # of code of any task
            where = f"item {number + 1} after the task's own selection"
            if len(documents) == len(task.dataset[source["stands_for"]]):
                where = local_files.read(Path(source["path"]), name)[number][0]
            raise DataError(f"{source['path']}, {where}: {_what(error, name, document)}") from error


def source_of(task: Task) -> dict[str, Any]:
    """Where a task's items are from.

    Returns:
        `dataset`, `config`, `revision`, `licence` and `split` as far as known, `stands_for`, the split that the
        harness evaluates, and `rows`; of a local file also `path` and `sha256`.
    """
    config = task.config
    local = (config.dataset_kwargs or {}).get(KEY)
    if local is not None:
        return local["source"] | {"rows": len(task.dataset[local["source"]["stands_for"]])}
    split = config.test_split or config.validation_split
    items = task.dataset[split] if isinstance(task, ConfigurableTask) and split else task.eval_docs
    return {
        "dataset": config.dataset_path,
        "config": config.dataset_name,
        "revision": revision_of(items) if isinstance(items, datasets.Dataset) else None,
        "licence": ORIGINS[config.task].licence if config.task in ORIGINS else None,
        "split": split,
        "stands_for": split,
        "rows": len(items),
    }


def item_hash(document: Mapping[str, Any], task: str = "") -> str:
    """sha256 of an item, the same wherever it stands and in whatever file.

    Args:
        task: of the default suite only the columns count that its preprocessing reads, so that an item from the Hub and
            one from a file without the rest are the same; of others, all columns.
    """
    columns = sorted(COLUMNS.get(task, document))
    canonical = json.dumps([[column, document[column]] for column in columns], ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def clusters_of(task_name: str, documents: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which items are not independent of one another: they have the same number.

    Many of Winogrande's sentences come as twins that differ by a word or two and have the same two options: 168 pairs
    among the 760 validation items in `../shared/data`. HellaSwag's items of one video or article share a `source_id`.
    Items of other tasks each stand alone.
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

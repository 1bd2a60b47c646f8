"""Benchmark items in a folder, for machines without network: gathered once, with hashes, sources and licences."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.tasks import local_files
from gptstar.evaluation.tasks.hub import revision_of
from gptstar.evaluation.tasks.manifest import (
    FILE_NAME,
    ORIGINS,
    Entry,
    Origin,
    read_manifest,
    sha256_of,
    verified,
    write_manifest,
)
from gptstar.evaluation.tasks.offline import load_tasks, splits_of
from gptstar.evaluation.tasks.registry import leaves, manager_for
from gptstar.files import file_sha256, whole_file


def bundle(
    tasks: Sequence[str], folder: Path, *, source: Path | None, console: Console, num_fewshot: int | None = None
) -> dict[str, Entry]:
    """Write what tasks need to `folder`: `TASK.jsonl`, `TASK/SPLIT.jsonl` for few-shot examples, and `manifest.json`.

    Files are in the columns of the dataset on the Hub, one item a line, and appear whole or not at all. The same call
    goes on where an earlier one was interrupted.

    Args:
        tasks: of the harness; groups and tags too.
        source: a folder of files, as `load_tasks` reads them, to take the items from; the Hub unless given.
        num_fewshot: examples before each item, which come from another split; what each task says unless given.

    Returns:
        By name: what `manifest.json` says of all files in the folder.

    Raises:
        ConfigError: no such task, or a file in the way.
        DataError: items that are missing or damaged; the Hub is out of reach; a bundled file has changed.
    """
    if source is not None and (not source.is_dir() or source.resolve() == folder.resolve()):
        raise ConfigError(f"--from={source} has to be another folder, of files such as {tasks[0]}.jsonl")
    manager = manager_for(tasks)
    names = dict.fromkeys(leaf for name in tasks for leaf in leaves(name, manager))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be written ({error.strerror})") from error
    manifest = read_manifest(folder)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("tasks", total=len(names))
        for task in names:
            progress.update(bar, description=task)
            _gather(task, manager, folder, source, num_fewshot, manifest)
            progress.advance(bar)
    size = sum(entry.bytes for entry in manifest.values())
    console.print(
        f"{folder}: {len(manifest)} files, {size / 1e6:.1f} MB, with sources and licences in {FILE_NAME}; "
        f"to use it: evaluate.py … evaluation.data_dir={folder}",
        soft_wrap=True,
        highlight=False,
    )
    return manifest


def _gather(
    task: str,
    manager: TaskManager,
    folder: Path,
    source: Path | None,
    num_fewshot: int | None,
    manifest: dict[str, Entry],
) -> None:
    """Bring a task's files and their lines of the manifest up to date."""
    evaluated, few_shot, _, config = splits_of(task, manager, num_fewshot)
    loaded: Any = None
    for split in (evaluated, few_shot):
        if split is None:
            continue
        name = f"{task}.jsonl" if split == evaluated else f"{task}/{split}.jsonl"
        path, known, origin = folder / name, manifest.get(name), ORIGINS.get(task, Origin())
        found = None if source is None else _found(source, task, split, evaluated=split == evaluated)
        if path.exists():
            if known is None:
                raise ConfigError(f"{path} is in the way: move it, or choose another folder")
            verified(folder, path, manifest)
            if found is None or known.taken_from == sha256_of(found):
                continue
        if found is not None and source is not None:
            taken_from, entry = verified(source, found, read_manifest(source))
            rows: Iterable[Any] = (row for _, row in local_files.read(found, task))
            revision = entry.revision if entry else None
            named = entry.split if entry else split if found.parent != source else None
        else:
            loaded = loaded or _from_hub(task)
            rows, taken_from = loaded.dataset[split], None
            revision, named = revision_of(loaded.dataset[split]), split
        with whole_file(path) as temporary:
            n_rows = _write(temporary, rows, path.name)
            manifest[name] = Entry(
                task=task,
                split=named,
                stands_for=split,
                rows=n_rows,
                bytes=temporary.stat().st_size,
                sha256=file_sha256(temporary),
                dataset=config.get("dataset_path"),
                config=config.get("dataset_name"),
                revision=revision,
                licence=origin.licence,
                homepage=origin.homepage,
                citation=origin.citation,
                taken_from=taken_from,
            )
            write_manifest(folder, manifest)  # before the file: one that is in no manifest would be somebody else's


def _found(source: Path, task: str, split: str, *, evaluated: bool) -> Path:
    path = local_files.find(source, task, split, evaluated=evaluated)
    if path is None:
        name = f"{task}.jsonl" if evaluated else f"{task}/{split}.jsonl"
        raise DataError(f"--from={source} lacks {name}: the {split} split of {task}")
    return path


def _from_hub(task: str) -> Any:
    (loaded,) = load_tasks([task], None)
    if not isinstance(loaded, ConfigurableTask):
        raise ConfigError(f"evaluation.tasks: {task} reads its own data, which can't be bundled: leave it out")
    return loaded


def _write(path: Path, rows: Iterable[Any], name: str) -> int:
    """Write items, one a line, and count them; errors speak of the file as `name`."""
    n_rows = 0
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                n_rows += 1
    except TypeError as error:
        raise ConfigError(f"{name}: items hold more than text and numbers ({error}): leave the task out") from error
    except OSError as error:
        raise ConfigError(f"{path.with_name(name)}: can't be written ({error.strerror})") from error
    return n_rows

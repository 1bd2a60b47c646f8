"""Bundles of benchmark items for machines without a network, with hashes, sources and licences."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from rich.console import Console
from rich.progress import track

from gptstar.errors import ConfigError
from gptstar.evaluation.tasks import local_files, manifest
from gptstar.evaluation.tasks.hub import revision_of
from gptstar.evaluation.tasks.manifest import Entry
from gptstar.evaluation.tasks.offline import load_tasks, splits_of
from gptstar.evaluation.tasks.published import published_rows
from gptstar.evaluation.tasks.registry import leaves, manager_for
from gptstar.files import file_sha256, whole_file


def bundle(
    tasks: Sequence[str], folder: Path, *, source: Path | None, console: Console, num_fewshot: int | None = None
) -> dict[str, Entry]:
    """Write the items of tasks to `folder`: `TASK.jsonl`, `TASK/SPLIT.jsonl` for few-shot examples, `manifest.json`.

    Files have the columns of the dataset on the Hub, one item per line, and are written atomically. After an
    interruption, the same call continues. Returns the manifest's entries of all files in the folder, by name.

    Args:
        tasks: the names of tasks, groups or tags.
        folder: the folder to write.
        source: a folder of files, as `load_tasks` reads them, from which to copy the items; by default the Hub.
        console: the console for progress and the summary.
        num_fewshot: the number of few-shot examples, which come from another split; by default each task's own.

    Raises:
        ConfigError: a task does not exist, or a file is in the way.
        DataError: items are missing or damaged, the Hub is unreachable, or a bundled file has changed.
    """
    if source is not None and (not source.is_dir() or source.resolve() == folder.resolve()):
        raise ConfigError(f"--from={source} must be another folder, with files such as {tasks[0]}.jsonl")
    manager = manager_for(tasks)
    names = dict.fromkeys(leaf for name in tasks for leaf in leaves(name, manager))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be written ({error.strerror})") from error
    entries = manifest.read_manifest(folder)
    for task in track(names, "tasks", console=console, transient=True, disable=not console.is_terminal):
        config = manager.task_index[task].cfg
        used, _ = splits_of(config, num_fewshot)
        for split in used:
            _gather(folder, config, split, split == used[0], source, entries)
    size = sum(entry.bytes for entry in entries.values())
    console.print(
        f"{folder}: {len(entries)} files, {size / 1e6:.1f} MB, with sources and licences in {manifest.FILE_NAME}; "
        f"use it with: evaluate.py … evaluation.data_dir={folder}",
        soft_wrap=True,
        highlight=False,
    )
    return entries


def _gather(
    folder: Path, config: dict[str, Any], split: str, evaluated: bool, source: Path | None, entries: dict[str, Entry]
) -> None:
    """Write the file of a task's split and its entry in the manifest, unless both are up to date."""
    task = config["task"]
    name = f"{task}.jsonl" if evaluated else f"{task}/{split}.jsonl"
    path, entry = folder / name, entries.get(name)
    local = None if source is None else manifest.find_items("--from", source, config, split, evaluated=evaluated)
    if path.exists():
        if entry is None:
            raise ConfigError(f"{path} is in the way: move it, or choose another folder")
        manifest.verified_sha256(path, entry)
        if local is None or entry.taken_from == local["sha256"]:
            return
    rows: Iterable[Any]
    if local is not None:
        rows = (row for _, row in local_files.read(Path(local["path"]), task))
        named_split, revision = local["split"], local["revision"]
    else:
        (loaded,) = load_tasks([task], None)
        if not isinstance(loaded, ConfigurableTask):
            raise ConfigError(f"evaluation.tasks: {task} reads its own data, which can't be bundled: leave it out")
        rows = loaded.dataset[split]
        named_split, revision = split, revision_of(rows)
    known = published_rows().tasks.get(task)
    with whole_file(path) as temporary:
        n_rows = _write(temporary, rows, path)
        entries[name] = Entry(
            task=task,
            split=named_split,
            stands_for=split,
            rows=n_rows,
            bytes=temporary.stat().st_size,
            sha256=file_sha256(temporary),
            dataset=config.get("dataset_path"),
            config=config.get("dataset_name"),
            revision=revision,
            licence=known.licence if known else None,
            homepage=known.homepage if known else None,
            citation=known.citation if known else None,
            taken_from=None if local is None else local["sha256"],
        )
        manifest.write_manifest(folder, entries)  # before the file: a file without an entry counts as the user's own


def _write(temporary: Path, rows: Iterable[Any], path: Path) -> int:
    """Write items, one per line, to the temporary file for `path`, and count them."""
    n_rows = 0
    try:
        temporary.parent.mkdir(exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                n_rows += 1
    except TypeError as error:
        raise ConfigError(f"{path}: items hold more than text and numbers ({error}): leave the task out") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror})") from error
    return n_rows

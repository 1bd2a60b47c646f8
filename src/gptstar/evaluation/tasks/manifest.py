"""Folders of benchmark items, and their `manifest.json` with each file's source, licence and hash."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gptstar.errors import DataError
from gptstar.evaluation.results import problem
from gptstar.evaluation.tasks.published import licence_of
from gptstar.files import file_sha256, read_json, write_text

FILE_NAME = "manifest.json"
FORMAT = {"format": "gptstar evaluation bundle", "format_version": 1}
ENDINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Entry:
    """The manifest's entry for a file of a bundle; None means unknown.

    Attributes:
        split: the split of the dataset that the file holds.
        stands_for: the split as which the harness uses the file.
        dataset, config, revision: the dataset on the Hub, its configuration, and its commit.
        taken_from: the sha256 of the local file from which the items were copied, if there was one.
    """

    task: str
    split: str | None
    stands_for: str
    rows: int
    bytes: int
    sha256: str
    dataset: str | None
    config: str | None
    revision: str | None
    licence: str | None
    homepage: str | None
    citation: str | None
    taken_from: str | None = None


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Read the entries of a bundle's files, by name; empty if the folder has no manifest.

    Raises:
        DataError: the manifest is damaged, or has another format.
    """
    path = folder / FILE_NAME
    try:
        tree = read_json(path)
        if not FORMAT.items() <= tree.items():
            raise ValueError("another format")
        return TypeAdapter(dict[str, Entry]).validate_python(tree.get("files"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: not a manifest as `gptstar evaluation bundle` writes it ({problem(error)}): remove it, or choose "
            "another folder"
        ) from error


def write_manifest(folder: Path, files: dict[str, Entry]) -> None:
    """Write the manifest of a bundle atomically.

    Raises:
        OSError: the manifest can't be written; the old one remains.
    """
    entries = {name: asdict(files[name]) for name in sorted(files)}
    tree = FORMAT | {"harness": version("lm-eval"), "files": entries}
    write_text(folder / FILE_NAME, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def verified_sha256(path: Path, entry: Entry | None) -> str:
    """Hash a file, and compare the hash with its entry in the manifest, if there is one.

    Raises:
        DataError: the file can't be read, or differs from the manifest's entry.
    """
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    if entry is not None and entry.sha256 != sha256:
        raise DataError(
            f"{path}: sha256 {sha256[:12]}… is not the {entry.sha256[:12]}… of {FILE_NAME}: the file has changed since "
            "it was bundled; remove it, and let `gptstar evaluation bundle` write it again"
        )
    return sha256


def find_items(
    option: str, folder: Path, config: Mapping[str, Any], split: str, *, evaluated: bool, num_fewshot: int | None = None
) -> dict[str, Any]:
    """Find and verify the file of a task's split: `TASK/SPLIT.jsonl`, or `TASK.jsonl` if the split is evaluated.

    Args:
        option: the option by which the user named the folder.
        config: the task's definition.

    Returns:
        A mapping with `path` and `sha256`, and with `split`, `revision` and `licence` if they are known.

    Raises:
        DataError: there is no such file, there are several, or it differs from the manifest's entry.
    """
    task = config["task"]
    stems = (f"{task}/{split}", task) if evaluated else (f"{task}/{split}",)
    paths = [path for stem in stems for ending in ENDINGS if (path := folder / f"{stem}{ending}").is_file()]
    if not paths:
        purpose = "" if evaluated else ", from which its few-shot examples come"
        examples = "" if evaluated else f" --num-fewshot {num_fewshot or 1}"
        here = sorted({path.name.partition(".")[0] for path in folder.iterdir() if path.name.endswith(ENDINGS)})
        offer = f", or evaluate the tasks it has: evaluation.tasks=[{','.join(here)}]" if here and evaluated else ""
        raise DataError(
            f"{option}={folder} lacks {stems[-1]}.jsonl: the {split} split of {dataset_of(config)}{purpose}; on a "
            f"machine with a network, `gptstar evaluation bundle DIR --tasks {task}{examples}` downloads it{offer}"
        )
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1]} could both be the {split} split of {task}: keep one")
    path = paths[0]
    entry = read_manifest(folder).get(path.relative_to(folder).as_posix())
    file = {"path": str(path), "sha256": verified_sha256(path, entry)}
    if entry is not None:
        return file | {"split": entry.split, "revision": entry.revision, "licence": entry.licence}
    named_split = split if path.parent != folder else None
    return file | {"split": named_split, "revision": None, "licence": licence_of(task)}


def dataset_of(config: Mapping[str, Any]) -> str:
    """Return the name on the Hub of the dataset in a task's definition."""
    name = config.get("dataset_name")
    return f"{config.get('dataset_path', 'its dataset')}{f' ({name})' if name else ''}"

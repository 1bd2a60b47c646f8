"""Folders of benchmark items, and their `manifest.json`: where each file is from, under which licence, and its hash."""

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
    """A file of a bundle. None is unknown.

    Attributes:
        split: of the dataset.
        stands_for: the split that the harness would take it as.
        dataset, config, revision: on the Hub.
        taken_from: sha256 of the local file that it was made from, if it was.
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
    """Files of a bundle by name; none where a folder has no manifest.

    Raises:
        DataError: damaged, or of another format.
    """
    path = folder / FILE_NAME
    try:
        tree = read_json(path)
        if not FORMAT.items() <= tree.items():
            raise ValueError("of another format")
        return TypeAdapter(dict[str, Entry]).validate_python(tree.get("files"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: not a manifest as `gptstar evaluation bundle` writes it ({problem(error)}): remove it, or choose "
            "another folder"
        ) from error


def write_manifest(folder: Path, files: dict[str, Entry]) -> None:
    """Write the manifest of a bundle, whole or not at all.

    Raises:
        OSError: it can't be written; the old one stands.
    """
    entries = {name: asdict(files[name]) for name in sorted(files)}
    tree = FORMAT | {"harness": version("lm-eval"), "files": entries}
    write_text(folder / FILE_NAME, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def verified_sha256(path: Path, entry: Entry | None) -> str:
    """Hash a file, and compare the hash with that of the file's entry in its manifest, if it has one.

    Raises:
        DataError: the file can't be read, or is not the one that the manifest describes.
    """
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    if entry is not None and entry.sha256 != sha256:
        raise DataError(
            f"{path}: sha256 {sha256[:12]}… is not the {entry.sha256[:12]}… of {FILE_NAME}: the file has changed since "
            "it was bundled; remove it, then `gptstar evaluation bundle` writes it again"
        )
    return sha256


def find_items(
    option: str, folder: Path, config: Mapping[str, Any], split: str, *, evaluated: bool, num_fewshot: int | None = None
) -> dict[str, Any]:
    """Find and verify the file of a task's split: `TASK/SPLIT.jsonl`, or `TASK.jsonl` if the split is evaluated.

    Args:
        option: what the user named the folder by.
        config: the task's definition.

    Returns:
        `path` and `sha256`; `split`, `revision` and `licence` as far as they are known.

    Raises:
        DataError: there are several, none, or it is not the file that the folder's manifest describes.
    """
    task = config["task"]
    stems = (f"{task}/{split}", task) if evaluated else (f"{task}/{split}",)
    paths = [path for stem in stems for ending in ENDINGS if (path := folder / f"{stem}{ending}").is_file()]
    if not paths:
        purpose = "" if evaluated else ", which its few-shot examples are from"
        examples = "" if evaluated else f" --num-fewshot {num_fewshot or 1}"
        here = sorted({path.name.partition(".")[0] for path in folder.iterdir() if path.name.endswith(ENDINGS)})
        offer = f", or evaluate what is there: evaluation.tasks=[{','.join(here)}]" if here and evaluated else ""
        raise DataError(
            f"{option}={folder} lacks {stems[-1]}.jsonl: the {split} split of {dataset_of(config)}{purpose}; on a "
            f"machine with network `gptstar evaluation bundle DIR --tasks {task}{examples}` fetches it{offer}"
        )
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1]} both claim to be the {split} split of {task}: keep one")
    path = paths[0]
    entry = read_manifest(folder).get(path.relative_to(folder).as_posix())
    file = {"path": str(path), "sha256": verified_sha256(path, entry)}
    if entry is not None:
        return file | {"split": entry.split, "revision": entry.revision, "licence": entry.licence}
    named_split = split if path.parent != folder else None
    return file | {"split": named_split, "revision": None, "licence": licence_of(task)}


def dataset_of(config: Mapping[str, Any]) -> str:
    """The dataset of a task's definition, by its name on the Hub."""
    name = config.get("dataset_name")
    return f"{config.get('dataset_path', 'its dataset')}{f' ({name})' if name else ''}"

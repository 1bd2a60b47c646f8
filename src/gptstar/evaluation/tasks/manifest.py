"""`manifest.json` of a folder of benchmark items: where each file is from, under which licence, and its hash."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gptstar.errors import DataError
from gptstar.files import file_sha256, write_text

FILE_NAME = "manifest.json"
FORMAT = "gptstar evaluation bundle"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Origin:
    """What is known of a dataset beyond its name. None is unknown."""

    licence: str | None = None
    homepage: str | None = None
    citation: str | None = None


@dataclass(frozen=True)
class Entry:
    """A file of a bundle.

    Attributes:
        split: of the dataset, as far as known.
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


ORIGINS = {
    "lambada_openai": Origin(
        "CC BY 4.0 (LAMBADA); the Hub's card of OpenAI's version says MIT",
        "https://zenodo.org/record/2630551",
        "Paperno et al. 2016, The LAMBADA dataset: Word prediction requiring a broad discourse context",
    ),
    "wikitext": Origin(
        "CC BY-SA 3.0",
        "https://huggingface.co/datasets/EleutherAI/wikitext_document_level",
        "Merity et al. 2016, Pointer Sentinel Mixture Models",
    ),
    "piqa": Origin(
        "AFL-3.0",
        "https://yonatanbisk.com/piqa/",
        "Bisk et al. 2020, PIQA: Reasoning about Physical Commonsense in Natural Language",
    ),
    "hellaswag": Origin(
        "MIT",
        "https://rowanzellers.com/hellaswag/",
        "Zellers et al. 2019, HellaSwag: Can a Machine Really Finish Your Sentence?",
    ),
    "winogrande": Origin(
        "CC BY (the data; version not stated; the code is Apache-2.0)",
        "https://github.com/allenai/winogrande",
        "Sakaguchi et al. 2019, WinoGrande: An Adversarial Winograd Schema Challenge at Scale",
    ),
}
"""By task, as the datasets' own pages have it."""


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Files of a bundle by name; none where a folder has no manifest.

    Raises:
        DataError: damaged, or of another format.
    """
    path = folder / FILE_NAME
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error}): remove it, or make the bundle again") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or tree.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: no manifest as `gptstar evaluation bundle` writes it: remove it or choose another folder"
        )
    try:
        return TypeAdapter(dict[str, Entry]).validate_python(tree.get("files"))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: damaged at {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def write_manifest(folder: Path, files: dict[str, Entry]) -> None:
    """Write the manifest of a bundle, whole or not at all.

    Raises:
        OSError: it can't be written; the old one stands.
    """
    tree = {"format": FORMAT, "format_version": FORMAT_VERSION, "harness": version("lm-eval")}
    tree |= {"files": {name: asdict(files[name]) for name in sorted(files)}}
    write_text(folder / FILE_NAME, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Hash a file's bytes.

    Raises:
        DataError: it can't be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error


def verified(folder: Path, path: Path, manifest: dict[str, Entry]) -> tuple[str, Entry | None]:
    """A file's sha256, and what the manifest says of the file, if it is in it.

    Raises:
        DataError: it is not the file that the manifest speaks of.
    """
    found = sha256_of(path)
    entry = manifest.get(path.relative_to(folder).as_posix())
    if entry is not None and entry.sha256 != found:
        raise DataError(
            f"{path}: sha256 {found[:12]}… is not the {entry.sha256[:12]}… of {folder / FILE_NAME}: the file has "
            "changed since it was bundled; remove it, then `gptstar evaluation bundle` writes it again"
        )
    return found, entry

"""Where text comes from: the English that every Python carries, or the user's own files."""

import ast
import functools
import glob
import gzip
import hashlib
import io
import json
import platform
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from gptstar.errors import DataError

Documents = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    Attributes:
        source: what it is and where it came from, for the manifest.
        identity: changes when the text does; cheap to compute.
        documents: yields the documents anew, in the same order, at every call.
    """

    name: str
    source: str
    licence: str
    identity: str
    documents: Documents


def bundled_corpora() -> list[Corpus]:
    """The Python language reference and the standard library's docstrings: no download, about 2 MB of English."""
    library = sysconfig.get_paths()["stdlib"]
    version = platform.python_version()
    identity = hashlib.sha256(f"{sys.version} {library}".encode()).hexdigest()
    licence = "PSF-2.0"
    return [
        Corpus("reference", f"pydoc_data.topics of CPython {version}", licence, identity, _reference_topics),
        Corpus(
            "docstrings",
            f"docstrings of CPython {version}",
            licence,
            identity,
            lambda: iter(_docstrings(Path(library))),
        ),
    ]


def _reference_topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name].strip()


@functools.cache
def _docstrings(library: Path) -> tuple[str, ...]:
    """One document a module: its docstrings in the order of the source."""
    not_the_library = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documents = []
    for path in sorted(library.rglob("*.py")):
        if not_the_library & set(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # of invalid escapes, in code that is not ours
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some distributions ship templates that are no Python
            continue
        docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
        text = "\n\n".join(docstring for docstring in docstrings if docstring)
        if text:
            documents.append(_without_lone_surrogates(text))
    return tuple(documents)


def local_corpora(patterns: Sequence[str]) -> list[Corpus]:
    """Files on this machine, grouped into corpora by the folder they lie in.

    Args:
        patterns: glob patterns of `.jsonl` (one object with a `text` field a line) or `.txt` (a document a file),
            plain or compressed as `.gz` or `.zst`.

    Raises:
        DataError: a pattern matches nothing, a form is unknown, or two folders share a name.
    """
    files: list[Path] = []
    for pattern in patterns:
        matches = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        if not matches:
            raise DataError(f"data.files={pattern} matches no file (looked from {Path.cwd()})")
        files += [path for path in matches if path not in files]
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        if _form(path) is None:
            raise DataError(f"{path}: unknown form; known are .jsonl and .txt, plain or compressed as .gz or .zst")
        by_folder.setdefault(path.resolve().parent, []).append(path)
    names = [folder.name for folder in by_folder]
    if len(set(names)) < len(names):
        raise DataError(
            f"two folders share a name and would be one corpus: {', '.join(map(str, by_folder))}; rename one"
        )
    return [
        Corpus(folder.name, str(folder), "not stated", _content_hash(paths), functools.partial(_read_all, paths))
        for folder, paths in by_folder.items()
    ]


def _content_hash(paths: Sequence[Path]) -> str:
    """Hash of names, sizes, first and last MiB: notices what people change without reading terabytes."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
    return digest.hexdigest()


def _form(path: Path) -> str | None:
    name = path.name.removesuffix(".zst").removesuffix(".gz")
    return next((form for form in ("jsonl", "txt") if name.endswith(f".{form}")), None)


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".zst":
        frames = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, frames)))
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _read_all(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        try:
            with _open(path) as file:
                yield from _json_texts(path, file) if _form(path) == "jsonl" else (file.read().decode("utf-8"),)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}): convert it first") from error
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"{path}: can't be read ({error}): the file is damaged or cut short") from error


def _json_texts(path: Path, lines: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f'{path}, line {number}: not a JSON object with a "text" field ({error!r})') from error
        if not isinstance(text, str):
            raise DataError(f'{path}, line {number}: "text" is a {type(text).__name__}, not a string')
        if text:
            yield _without_lone_surrogates(text)


def _without_lone_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: a half of a character that JSON's escapes may carry becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

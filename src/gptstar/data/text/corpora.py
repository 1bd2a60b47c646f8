"""Corpora: the English text that ships with Python, the user's own files, and named datasets."""

import ast
import functools
import glob
import hashlib
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from gptstar.data.config import CorpusConfig
from gptstar.data.text.compression import COMPRESSIONS
from gptstar.data.text.hub import commit_of, hub_shards, saved_files
from gptstar.data.text.readers import FORMS, File, form_of
from gptstar.data.text.records import Fields, Piece, Record, Unit, document
from gptstar.data.text.sources import described, identity_of, source_parts
from gptstar.errors import DataError, in_one_line

STAMPED_PARTS, STAMPED_BYTES = 16, 2**20
BUNDLED_BYTES = 2**20


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    Attributes:
        source: a description of the corpus and its origin, for the manifest.
        identity: a text that changes when the corpus changes; cheap to compute.
        units: the files or shards to read, in order.
        files: the large files, of which the identity covers samples only.
    """

    name: str
    source: str
    identity: str
    units: tuple[Unit, ...]
    config: CorpusConfig
    files: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Number of bytes to read; None if unknown."""
        return total_size(self.units)

    def documents(self) -> Iterator[str]:
        """Yield the complete text of each document; each call reads from the beginning."""
        pieces: list[str] = []
        for unit in self.units:
            for record in unit.read():
                if isinstance(record, Piece):
                    pieces.append(record.text)
                    if record.last:
                        yield "".join(pieces)
                        pieces = []


def total_size(parts: Iterable[Unit | Corpus]) -> int | None:
    """Sum the bytes to read; None if a size is unknown."""
    sizes = [part.size for part in parts]
    return None if None in sizes else sum(size or 0 for size in sizes)


@dataclass(frozen=True)
class Bundled(Unit):
    """Documents that a function returns."""

    texts: Callable[[], Sequence[str]]

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the documents, without the first `start`."""
        for number, text in enumerate(self.texts()[start:], start=start + 1):
            yield from document(text, number, min(BUNDLED_BYTES, number * 4096))


def bundled_corpora() -> list[Corpus]:
    """Return two corpora that ship with Python, about 2 MB: its language reference and its library's docstrings."""
    version = platform.python_version()
    identity = hashlib.sha256(f"{sys.version} {sysconfig.get_paths()['stdlib']}".encode()).hexdigest()
    config = CorpusConfig(licence="PSF-2.0")

    def corpus(name: str, source: str, texts: Callable[[], Sequence[str]]) -> Corpus:
        return Corpus(name, source, identity, (Bundled(source, BUNDLED_BYTES, texts),), config)

    return [
        corpus("reference", f"pydoc_data.topics of CPython {version}", _reference),
        corpus("docstrings", f"docstrings of CPython {version}", _docstrings),
    ]


def _reference() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name].strip() for name in sorted(topics)]


@functools.cache
def _docstrings() -> tuple[str, ...]:
    """Make a document of each module: its docstrings in source order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    not_the_library = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documents = []
    for path in sorted(library.rglob("*.py")):
        if not_the_library & set(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # about invalid escapes in the standard library
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some distributions ship templates that are not Python
            continue
        docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
        text = "\n\n".join(docstring for docstring in docstrings if docstring)
        if text:
            documents.append(text)
    return tuple(documents)


def local_corpora(patterns: str | Sequence[str], settings: Mapping[str, CorpusConfig] | None = None) -> list[Corpus]:
    """Group files into corpora by folder.

    Args:
        patterns: globs of `.jsonl` (one object per line), `.parquet`, `.arrow` or `.txt` (one document per file),
            plain or compressed as `.gz` or `.zst`, local or at an address that fsspec knows.
        settings: settings of a corpus, by the name of its folder.

    Raises:
        DataError: a pattern matches nothing, a file format is unknown, two folders share a name, or settings
            name a folder that doesn't exist.
    """
    settings = settings or {}
    by_folder: dict[str, list[str]] = {}
    for address in find_files(patterns):
        by_folder.setdefault(_folder(address), []).append(address)
    names = [folder.rpartition("/")[2] for folder in by_folder]
    if len(set(names)) < len(names):
        raise DataError(
            f"two folders share a name, so they would be one corpus: {', '.join(by_folder)}; rename one of them"
        )
    unused = [name for name, config in settings.items() if name not in names and config.files is None]
    if unused:
        raise DataError(
            f"data.corpora.{unused[0]} doesn't match a folder of data.files: choose from {', '.join(names)}"
        )
    return [
        _of_files(name, folder, files, settings.get(name, CorpusConfig()))
        for name, (folder, files) in zip(names, by_folder.items(), strict=True)
    ]


def named_corpus(name: str, config: CorpusConfig) -> Corpus:
    """Open a corpus: from the user's own code or files if given, otherwise from the Hub.

    Raises:
        DataError: the files or the dataset don't exist, or the corpus names neither; then the message has its note.
    """
    if config.source is not None:
        source, units = config.source, source_parts(config.source)
        return Corpus(name, described(source), identity_of(source), units, config)
    if config.files is not None:
        shown = config.files if isinstance(config.files, str) else ", ".join(config.files)
        return _of_files(name, shown, find_files(config.files), config)
    if config.hub is None:
        why = f" ({config.note})" if config.note else ""
        raise DataError(f"corpus {name} has no source{why}: give your own copy as data.corpora.{name}.files=GLOB")
    if (Path(config.hub) / "state.json").is_file():
        return _of_files(name, config.hub, saved_files(Path(config.hub)), config)
    fields = _fields(config)
    shards = hub_shards(config, fields)
    origin = f"{commit_of(config.hub, config.revision)}, {config.hub_config or 'default'}, {config.split}"
    own = sorted(str(path) for path in Path(config.hub).rglob("*") if path.is_file())  # if it is a local folder
    stamps = [_stamp(address) for address in own]
    identity = "\n".join([f"{origin} {fields}", *(stamp for _, stamp in stamps)])
    return Corpus(name, origin, identity, shards, config, _sampled(own, stamps))


def _of_files(name: str, source: str, files: Sequence[str], config: CorpusConfig) -> Corpus:
    fields = _fields(config)
    stamps = [_stamp(address) for address in files]
    identity = hashlib.sha256("\n".join([str(fields), *(stamp for _, stamp in stamps)]).encode()).hexdigest()
    units = tuple(File(address, size, fields) for address, (size, _) in zip(files, stamps, strict=True))
    return Corpus(name, source, identity, units, config, _sampled(files, stamps))


def _sampled(files: Sequence[str], stamps: Sequence[tuple[int | None, str]]) -> tuple[str, ...]:
    """Select the local files whose stamp covers samples of the content only."""
    sizes = [(address, size or 0) for address, (size, _) in zip(files, stamps, strict=True)]
    return tuple(address for address, size in sizes if "://" not in address and size > STAMPED_PARTS * STAMPED_BYTES)


def _fields(config: CorpusConfig) -> Fields:
    return Fields(config.column, config.date_column, config.newer_than)


def find_files(patterns: str | Sequence[str]) -> list[str]:
    """Find the files that match globs, ordered by pattern and then by name.

    Raises:
        DataError: a pattern matches nothing or can't be looked up, or a file format is unknown.
    """
    files: dict[str, str] = {}  # by real path, so that a file counts once even with links
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = _matches(pattern)
        if not matches:
            here = "" if "://" in pattern else f" (looked from {Path.cwd()})"
            raise DataError(f"{pattern} doesn't match any file{here}: check the path")
        for name in matches:
            files.setdefault(name if "://" in name else os.path.realpath(name), name)
    for address in files.values():
        if form_of(address) is None:
            forms = f"{', '.join(FORMS)}, plain or compressed as {' or '.join(COMPRESSIONS)}"
            raise DataError(f"{address} has an unknown format: use {forms}")
    return list(files.values())


def _matches(pattern: str) -> list[str]:
    if "://" not in pattern:
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        matches = [name for name in matches if not os.path.isdir(name)]
        for name in matches:
            if not os.path.isfile(name):
                raise DataError(
                    f"{name} is not a regular file, and text is read more than once: save its content to a file"
                )
        return matches
    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        if not glob.has_magic(path):
            return [pattern] if filesystem.exists(path) else []
        inner, chain, outer = pattern.partition("::")
        protocol = inner.partition("://")[0]
        names = (name if "://" in name else f"{protocol}://{name.lstrip('/')}" for name in filesystem.glob(path))
        return [f"{name}{chain}{outer}" for name in sorted(names)]
    except Exception as error:  # each kind of store raises its own
        raise DataError(f"{pattern} can't be looked up ({in_one_line(error)}): check the address") from error


def _folder(address: str) -> str:
    if "://" in address:
        return address.partition("::")[0].rpartition("/")[0]
    return str(Path(address).resolve().parent)


def _stamp(address: str) -> tuple[int | None, str]:
    """Return a file's size, and a stamp that changes with its content.

    The stamp is a hash of 16 MiB spread over the file, or for a remote file, what the server reports.
    """
    if "://" in address:
        filesystem, path = fsspec.core.url_to_fs(address)
        return filesystem.size(path), f"{address} {filesystem.ukey(path)}"
    path = Path(address)
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        for part in range(STAMPED_PARTS):
            file.seek(max(0, size - STAMPED_BYTES) * part // (STAMPED_PARTS - 1))
            digest.update(file.read(STAMPED_BYTES))
    return size, f"{path.name} {size} {digest.hexdigest()}"

"""Where text comes from: the English that every Python carries, the user's own files, or datasets by name."""

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
        source: what it is and where it came from, for the manifest.
        identity: changes when the text does; cheap to compute.
        units: what it is read from, in its order.
        files: those of its files of which the identity holds samples only.
    """

    name: str
    source: str
    identity: str
    units: tuple[Unit, ...]
    config: CorpusConfig
    files: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes to read, where they are known."""
        return total_size(self.units)

    def documents(self) -> Iterator[str]:
        """Yield the texts of its documents, whole, anew at every call."""
        pieces: list[str] = []
        for unit in self.units:
            for record in unit.read():
                if isinstance(record, Piece):
                    pieces.append(record.text)
                    if record.last:
                        yield "".join(pieces)
                        pieces = []


def total_size(parts: Iterable[Unit | Corpus]) -> int | None:
    """Sum up bytes to read; None where they are not known."""
    sizes = [part.size for part in parts]
    return None if None in sizes else sum(size or 0 for size in sizes)


@dataclass(frozen=True)
class Bundled(Unit):
    """Documents that a function makes."""

    texts: Callable[[], Sequence[str]]

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield its documents, without the first `start`."""
        for number, text in enumerate(self.texts()[start:], start=start + 1):
            yield from document(text, number, min(BUNDLED_BYTES, number * 4096))


def bundled_corpora() -> list[Corpus]:
    """Name the Python language reference and the standard library's docstrings: about 2 MB of English, no download."""
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
    """Make a document of each module: its docstrings in the order of the source."""
    library = Path(sysconfig.get_paths()["stdlib"])
    not_the_library = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documents = []
    for path in sorted(library.rglob("*.py")):
        if not_the_library & set(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # of invalid escapes, in code that is not ours
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some distributions ship templates that are not Python
            continue
        docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
        text = "\n\n".join(docstring for docstring in docstrings if docstring)
        if text:
            documents.append(text)
    return tuple(documents)


def local_corpora(patterns: str | Sequence[str], settings: Mapping[str, CorpusConfig] | None = None) -> list[Corpus]:
    """Group files into corpora by the folder they lie in.

    Args:
        patterns: globs of `.jsonl` (one object a line), `.parquet`, `.arrow` or `.txt` (a document a file), plain or
            compressed as `.gz` or `.zst`, here or at an address that fsspec knows.
        settings: how much of a corpus is read, its licence and fields, by the name of its folder.

    Raises:
        DataError: a pattern matches nothing, a form is unknown, two folders share a name, or settings fit no folder.
    """
    settings = settings or {}
    by_folder: dict[str, list[str]] = {}
    for address in find_files(patterns):
        by_folder.setdefault(_folder(address), []).append(address)
    names = [folder.rpartition("/")[2] for folder in by_folder]
    if len(set(names)) < len(names):
        raise DataError(f"two folders share a name and would be one corpus: {', '.join(by_folder)}; rename one")
    unused = [name for name, config in settings.items() if name not in names and config.files is None]
    if unused:
        raise DataError(f"data.corpora.{unused[0]} fits no folder of data.files; those are {', '.join(names)}")
    return [
        _of_files(name, folder, files, settings.get(name, CorpusConfig()))
        for name, (folder, files) in zip(names, by_folder.items(), strict=True)
    ]


def named_corpus(name: str, config: CorpusConfig) -> Corpus:
    """Open a corpus from the user's own code or files where those are given, else from the Hub.

    Raises:
        DataError: files or dataset are not there; or there is neither, and the note that says why.
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
    own = sorted(str(path) for path in Path(config.hub).rglob("*") if path.is_file())  # where it is a folder
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
    """Select the files on this machine of which a stamp does not hold the whole content."""
    sizes = [(address, size or 0) for address, (size, _) in zip(files, stamps, strict=True)]
    return tuple(address for address, size in sizes if "://" not in address and size > STAMPED_PARTS * STAMPED_BYTES)


def _fields(config: CorpusConfig) -> Fields:
    return Fields(config.column, config.date_column, config.newer_than)


def find_files(patterns: str | Sequence[str]) -> list[str]:
    """Find the files that globs match, in the order of the patterns and then of the names.

    Raises:
        DataError: a pattern matches nothing or can't be looked up, or a file's form is unknown.
    """
    files: dict[str, str] = {}  # by where they really are, so that no link counts twice
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = _matches(pattern)
        if not matches:
            here = "" if "://" in pattern else f" (looked from {Path.cwd()})"
            raise DataError(f"{pattern} matches no file{here}")
        for name in matches:
            files.setdefault(name if "://" in name else os.path.realpath(name), name)
    for address in files.values():
        if form_of(address) is None:
            forms = f"{', '.join(FORMS)}, plain or compressed as {' or '.join(COMPRESSIONS)}"
            raise DataError(f"{address}: unknown form; known are {forms}")
    return list(files.values())


def _matches(pattern: str) -> list[str]:
    if "://" not in pattern:
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        matches = [name for name in matches if not os.path.isdir(name)]
        for name in matches:
            if not os.path.isfile(name):
                raise DataError(f"{name} is not a regular file")
        return matches
    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        if not glob.has_magic(path):
            return [pattern] if filesystem.exists(path) else []
        inner, chain, outer = pattern.partition("::")
        protocol = inner.partition("://")[0]
        names = (name if "://" in name else f"{protocol}://{name.lstrip('/')}" for name in filesystem.glob(path))
        return [f"{name}{chain}{outer}" for name in sorted(names)]
    except Exception as error:  # each kind of store has its own
        raise DataError(f"{pattern} can't be looked up ({in_one_line(error)})") from error


def _folder(address: str) -> str:
    if "://" in address:
        return address.partition("::")[0].rpartition("/")[0]
    return str(Path(address).resolve().parent)


def _stamp(address: str) -> tuple[int | None, str]:
    """Return a file's size, and what changes with its content: a hash of 16 MiB spread over it, or a server's word."""
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

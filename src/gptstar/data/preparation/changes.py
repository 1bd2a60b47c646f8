"""Detect whether large text files, which are recognised by samples, changed since shards were prepared."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from gptstar.data.preparation.parts import Request
from gptstar.data.storage.manifest import Manifest, read_manifest, write_manifest
from gptstar.data.text.corpora import Corpus
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.files import file_sha256


def file_stamps(corpus: Corpus, known: Sequence[str] = (), *, whole: bool = False) -> list[str]:
    """Return the modification time and SHA-256 of each large file of a corpus.

    Args:
        known: earlier stamps; their hashes are reused for files with the same modification time.
        whole: hash those files again, too.
    """
    stamps = []
    for number, name in enumerate(corpus.files):
        modified = str(Path(name).stat().st_mtime_ns)
        earlier = known[number] if number < len(known) else ""
        is_known = not whole and earlier.partition(" ")[0] == modified
        stamps.append(earlier if is_known else f"{modified} {file_sha256(Path(name))}")
    return stamps


def changed_files(corpus: Corpus, before: Sequence[str], now: Sequence[str]) -> list[str]:
    """List the files of a corpus whose SHA-256 changed."""
    stamps = zip(corpus.files, before, now, strict=True)
    return [name for name, *pair in stamps if len({stamp.partition(" ")[2] for stamp in pair}) > 1]


def look_again(request: Request, path: Path, console: Console, *, verify: bool) -> None:
    """Move shards aside, so that they are prepared again, if their text changed.

    Args:
        verify: hash every large file, not only the modified ones.
    """
    manifest = read_manifest(path / "manifest.json")
    if manifest.identity != request.identity:
        return
    sources, changed = dict(manifest.sources), []
    for corpus in request.mine:
        before = sources[corpus.name].files
        if len(before) != len(corpus.files):  # made by an earlier version, which stored no hashes
            _tell_what_is_unknown(corpus, manifest, path, console, verify=verify)
            continue
        now = file_stamps(corpus, before, whole=verify)
        changed += changed_files(corpus, before, now)
        sources[corpus.name] = replace(sources[corpus.name], files=now)
    if changed:
        _move_aside(path, manifest, f"{changed[0]} changed after the shards in {path} were prepared", console)
    elif sources != manifest.sources:
        with contextlib.suppress(OSError):  # somebody else's folder: its files will be hashed again next time
            tokenizer = Tokenizer.from_file(path / "tokenizer.json")
            write_manifest(path, replace(manifest, sources=sources), tokenizer)


def _move_aside(path: Path, manifest: Manifest, why: str, console: Console) -> None:
    try:
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not (path / "manifest.json").exists() or read_manifest(path / "manifest.json") != manifest:
                return  # another process moved it first
            aside = next(each for n in count(1) if not (each := path.with_name(f"{path.name}.before-{n}")).exists())
            path.rename(aside)
    except OSError as error:
        raise DataError(f"{why}, and they can't be moved aside ({error.strerror}): choose another folder") from error
    console.print(f"{why}: preparing the text again; the earlier shards are kept in {aside}", soft_wrap=True)


def _tell_what_is_unknown(corpus: Corpus, manifest: Manifest, path: Path, console: Console, *, verify: bool) -> None:
    shards = [path / f"{shard.name}.npy" for shard in manifest.shards]
    made = min((shard.stat().st_mtime_ns for shard in shards if shard.exists()), default=0)
    for name in corpus.files:
        if verify or Path(name).stat().st_mtime_ns > made:
            console.print(
                f"{name} may have changed after the shards in {path} were prepared; an earlier version, which hashed "
                "samples only, made them: choose another data.shards to prepare the text again",
                soft_wrap=True,
            )

"""Atomic writing of files, reading of text files, and hashes."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def partial_path(path: Path) -> Path:
    """Return the path for a file or folder while it is incomplete: `.NAME.partial` beside `path`."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its contents, if it exists.

    Raises:
        OSError: it can't be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Replace a file atomically: after a crash, either the old or the new file exists.

    The block writes a file or a symbolic link to the yielded path, which is beside `path` (POSIX replaces atomically
    within a folder only). At the end of the block the file is synced to the disk and renamed. If the block fails, the
    new file is removed and the old one remains. Two processes must not write the same path at once.

    Raises:
        OSError: the file can't be written, for instance because the disk is full; its `filename` is `path`.
    """
    temporary = partial_path(path)
    try:
        remove(temporary)  # left by a process that was killed
        yield temporary
        if not temporary.is_symlink():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a text file in UTF-8.

    Raises:
        OSError: the file can't be read, or is a pipe or a device, which may never end.
        UnicodeDecodeError: the file is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_text(encoding="utf-8", errors=errors)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically.

    Raises:
        OSError: the file can't be written; its `filename` is `path`.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write plain values as indented JSON atomically.

    Raises:
        OSError: the file can't be written; its `filename` is `path`.
        TypeError: JSON can't represent a value.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

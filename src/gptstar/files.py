"""Files that appear under their names whole or not at all, and hashes of files."""

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
    """Name the place beside `path` where a file or folder grows until it is complete: `.NAME.partial`."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds, if it is there.

    Raises:
        OSError: it can't be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Replace a file by what the block writes to the path it is given, so that a crash leaves the old file or the new.

    The block writes a file, or makes a symbolic link, beside `path` (POSIX replaces atomically within a folder only).
    When the block ends the file is synced to the disk and renamed. When the block fails what it wrote is removed, and
    the old file stands. Two processes must not write the same path at once.

    Raises:
        OSError: the file can't be written, as on a full disk; its `filename` is `path`.
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
    """Read a text in UTF-8.

    Raises:
        OSError: it can't be read, or is a pipe or a device, which may never end.
        UnicodeDecodeError: it is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_text(encoding="utf-8", errors=errors)


def read_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        OSError: as `read_text`.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `whole_file` does.

    Raises:
        OSError: the file can't be written; its `filename` is `path`.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write plain values as indented JSON, as `whole_file` does.

    Raises:
        OSError: the file can't be written; its `filename` is `path`.
        TypeError: JSON has no form for a value.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def file_sha256(path: Path) -> str:
    """Hash the bytes of a file: SHA-256, in hexadecimal.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

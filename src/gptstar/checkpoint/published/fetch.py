"""Download one file: resume after an interruption, verify it, and rename it only when it is complete."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from gptstar.checkpoint.published.registry import File
from gptstar.errors import CheckpointError, Refusal, in_one_line
from gptstar.files import file_sha256, partial_path, write_text

PAUSES = (1, 2, 4, 8, 16)
"""Seconds to wait before each retry; progress resets the count."""

OTHERWISE = "if you have the file: gptstar import FILE OUT; if you know another address of it: --url URL"

SECONDS = 30
"""Seconds without data after which a connection is closed."""

Progress = Callable[[int, int | None], None]
"""Progress callback: takes the number of received bytes, and the total if the server states it."""


def fetch(
    file: File,
    path: Path,
    *,
    progress: Progress,
    otherwise: str = OTHERWISE,
    check: Callable[[Path], object] = file_sha256,
) -> str:
    """Download a file, and resume an interrupted download.

    Args:
        path: where to store the file; nothing happens if it exists with the right hash.
        otherwise: advice for the user if the file is not available.
        check: reads the file before it is renamed, and raises a Refusal if it is not the published one.

    Returns:
        Its SHA-256.

    Raises:
        CheckpointError: the file is gone, unreachable or not the published one, or the disk is full. The message gives
            advice. Received data is kept, and the next call resumes from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            whole = path
            if not path.exists():
                whole = partial
                _complete(file, partial, progress, otherwise)
            sha256 = file_sha256(whole)
            try:
                if file.sha256 not in (None, sha256):
                    raise CheckpointError(f"sha256 {sha256}, not {file.sha256} as published")
                check(whole)
            except Refusal as error:
                if whole is path:
                    raise CheckpointError(
                        f"{path} exists, but is not the published file ({error}): move it away"
                    ) from error
                partial.unlink()
                _tag_of(partial).unlink(missing_ok=True)
                raise CheckpointError(
                    f"{file.url} sent a file that is not the published one ({error}): try again; if that does not "
                    f"help, the address no longer has the original; {otherwise}"
                ) from error
            whole.replace(path)
            _tag_of(partial).unlink(missing_ok=True)
            return sha256
    except Timeout as error:
        raise CheckpointError(f"{path} is being downloaded by another process: wait for it") from error
    except OSError as error:
        raise CheckpointError(f"can't write {path} ({error.strerror or error}); the received part is kept") from error


def _complete(file: File, partial: Path, progress: Progress, otherwise: str) -> None:
    """Download until the file is complete."""
    failures, most = 0, _size(partial)
    with httpx.Client(follow_redirects=True, timeout=SECONDS) as client:
        while True:
            try:
                _go_on(client, file, partial, progress)
                return
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status < 500 and status not in (408, 429):
                    raise CheckpointError(
                        f"{file.url} answers {status} {error.response.reason_phrase}: the address is gone or closed; "
                        f"{otherwise}"
                    ) from error
                cause = f"status {status}"
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise CheckpointError(f"{file.url} is not an http address ({in_one_line(error)})") from error
            except httpx.TooManyRedirects as error:
                raise CheckpointError(f"{file.url} redirects in a circle: {otherwise}") from error
            except (httpx.TransportError, httpx.StreamError) as error:
                cause = str(error) or type(error).__name__
            if _size(partial) > most:
                failures, most = 0, _size(partial)
            if failures == len(PAUSES):
                raise CheckpointError(
                    f"can't get {file.url} ({cause}): check the network and repeat the command, which resumes the "
                    f"download; or, {otherwise}"
                )
            time.sleep(PAUSES[failures])
            failures += 1


def _go_on(client: httpx.Client, file: File, partial: Path, progress: Progress) -> None:
    """Fetch the missing part in one connection.

    Raises:
        httpx.HTTPError: the connection ended early.
    """
    tag = _tag_of(partial)
    mark = tag.read_text(encoding="ascii", errors="replace") if tag.exists() else ""
    start = _size(partial) if mark and mark.isascii() and mark.isprintable() else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": mark}
    with client.stream("GET", file.url, headers=headers) as response:
        if response.status_code == 416:  # the file is not longer than our part, or it is another file
            size = response.headers.get("Content-Range", "").rpartition("/")[2]  # SIZE in `bytes */SIZE`
            if size == str(start) and file.size in (None, start):
                return
            partial.unlink()
            raise httpx.ReadError(f"it has {size or 'unknown'} bytes, not {file.size or start:,}")
        response.raise_for_status()
        start = (
            start if response.status_code == 206 else 0
        )  # the server sends the whole file: it has changed, or ranges are not supported
        length = response.headers.get("Content-Length")
        total = file.size or (start + int(length) if length else None)
        if total is not None and (free := shutil.disk_usage(partial.parent).free) < total - start:
            raise CheckpointError(
                f"{partial.parent} has {free / 1e9:.1f} GB free, the file takes {(total - start) / 1e9:.1f} more: "
                "make room, or choose another OUT"
            )
        with partial.open("r+b" if start else "wb") as out:
            out.seek(start)
            out.truncate()  # before writing the tag, which must not apply to an older part
            mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or "W/"
            if mark.startswith("W/"):  # servers send no ranges for a weak tag
                tag.unlink(missing_ok=True)
            else:
                write_text(tag, mark)
            done = start
            for chunk in response.iter_raw():
                out.write(chunk)
                done += len(chunk)
                progress(done, total)
    if total is not None and done != total:
        raise httpx.ReadError(f"{done:,} of {total:,} bytes came")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_of(partial: Path) -> Path:
    """Return the file that records to which version of the published file the part belongs."""
    return partial.with_name(f"{partial.name}.tag")

"""Read files at an address that fsspec knows (`s3://`, `https://` …); retry after lost connections."""

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import fsspec
import fsspec.asyn

from gptstar.errors import DataError, in_one_line

RETRY_SECONDS = 120.0
REQUEST_SECONDS = 60.0
"""Seconds without an answer after which a request is repeated."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0
COPY_AGAIN = "copy the whole folder of shards to this address"

Range = tuple[str, int | None, int | None]
"""A file's name and a byte range `[start, stop)`; None means the start or end of the file."""

log = logging.getLogger(__name__)

if hasattr(os, "register_at_fork"):  # newer versions of fsspec do this themselves
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)


class RemoteFiles:
    """The files below an address. fsspec opens separate connections in each process and thread.

    Args:
        retry_seconds: how long to retry after a lost connection, counted from the last answer.
    """

    def __init__(self, address: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.address, self.retry_seconds = address.rstrip("/"), retry_seconds

    def read(self, name: str) -> bytes:
        """Read a whole file. Raises DataError like `read_ranges`."""
        return self.read_ranges([(name, None, None)])[0]

    def read_ranges(self, ranges: Sequence[Range], stop: threading.Event | None = None) -> list[bytes]:
        """Request parts of files, all at once; repeat failed requests at growing intervals.

        Args:
            stop: setting this event ends the waiting.

        Raises:
            DataError: a file is missing or forbidden; nothing arrived for `retry_seconds`; or `stop` was set.
        """
        stop = stop or threading.Event()
        contents: dict[Range, bytes] = {}
        deadline, wait = None, FIRST_WAIT_SECONDS
        while missing := [each for each in ranges if each not in contents]:
            failure: Exception | None = None
            for each, answer in zip(missing, self._request(missing), strict=True):
                if isinstance(answer, bytes):
                    contents[each], deadline, wait = answer, None, FIRST_WAIT_SECONDS
                elif _is_permanent(answer):
                    raise self._refusal(each[0], answer) from answer
                else:
                    failure = answer
            if failure is None:
                break
            reason = in_one_line(failure)
            if deadline is None:
                deadline = time.monotonic() + self.retry_seconds
                log.warning(f"{self.address} does not answer ({reason}): trying for {self.retry_seconds:.0f} s")
            left = deadline - time.monotonic()
            if left <= 0:
                raise DataError(
                    f"{self.address} could not be reached for {self.retry_seconds:.0f} s (last error: {reason}): "
                    "check the address and the connection, then repeat the command"
                ) from failure
            if stop.wait(min(left, wait * random.uniform(0.5, 1.0))):
                raise DataError(f"stopped reading {self.address}")
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        return [contents[each] for each in ranges]

    def _request(self, ranges: Sequence[Range]) -> Sequence[bytes | Exception]:
        filesystem, root = self._filesystem()
        paths = [f"{root}/{name}" for name, _, _ in ranges]
        starts, stops = [start for _, start, _ in ranges], [stop for _, _, stop in ranges]
        options = {"timeout": REQUEST_SECONDS} if filesystem.async_impl else {}
        try:
            return filesystem.cat_ranges(paths, starts, stops, on_error="return", **options)
        except Exception as error:  # each kind of store raises its own
            return [error] * len(ranges)

    def _filesystem(self) -> tuple[Any, str]:
        protocol = self.address.partition("://")[0]
        options: dict[str, Any] = {}
        if protocol in ("s3", "s3a"):
            # s3fs tries 5 times, and botocore 5 times in each try, so failing would take many minutes.
            configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options = {"config_kwargs": {**configured, "retries": {"total_max_attempts": 1}}}
        try:
            filesystem, root = fsspec.url_to_fs(self.address, **options)
        except ImportError as error:
            extra = {"s3a": "s3", "gs": "gcs"}.get(protocol, protocol)
            fix = f"pip install 'gptstar[{extra}]'" if extra in ("s3", "gcs") else "install it"
            raise DataError(f"{self.address} needs a package that is missing ({in_one_line(error)}): {fix}") from error
        except Exception as error:  # each kind of store raises its own
            raise DataError(f"{self.address} can't be read as an address ({in_one_line(error)}): check it") from error
        if options:
            filesystem.retries = 1
        return filesystem, root.rstrip("/")

    def _refusal(self, name: str, error: Exception) -> DataError:
        where = f"{self.address}/{name}"
        if isinstance(error, FileNotFoundError):
            return DataError(f"{where} is missing: {COPY_AGAIN}")
        if _is_forbidden(error):
            return DataError(
                f"{where} can't be read without permission ({in_one_line(error)}): give the store's credentials, for "
                "S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return DataError(f"{where} can't be read ({in_one_line(error)}): check the address")


def _is_permanent(error: Exception) -> bool:
    """Return whether repeating a request is useless."""
    permanent = FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, AttributeError
    if isinstance(error, (*permanent, NotImplementedError)) or _is_forbidden(error):
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in (408, 425, 429)
    return isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EREMCHG)


def _is_forbidden(error: Exception) -> bool:
    """Return whether permission is missing. Compare names: the stores' clients may not be installed."""
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__

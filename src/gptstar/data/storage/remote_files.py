"""Files at an address that fsspec knows (`s3://`, `https://` …), read in spite of lost connections."""

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import fsspec
from fsspec import asyn

from gptstar.errors import DataError, in_one_line

RETRY_SECONDS = 120.0
REQUEST_SECONDS = 60.0
"""What does not answer within this is asked again."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0

Range = tuple[str, int | None, int | None]
"""A file's name and the bytes `[start, stop)` of it; None for its own start and end."""

log = logging.getLogger(__name__)


class RemoteFiles:
    """Files below an address. It can be pickled, and carried over a fork: each process opens connections of its own.

    Args:
        address: of the folder.
        retry_seconds: for how long a connection that is lost is tried again, since the last answer.
    """

    def __init__(self, address: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.address, self.retry_seconds = address.rstrip("/"), retry_seconds
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            DataError: as `read_ranges`.
        """
        return self.read_ranges([(name, None, None)])[0]

    def read_ranges(self, ranges: Sequence[Range], stop: threading.Event | None = None) -> list[bytes]:
        """Parts of files, all asked for at once; those that fail are asked for again, at growing intervals.

        Args:
            stop: gives up waiting when it is set.

        Raises:
            DataError: a file is not there, or not for us; nothing was heard for `retry_seconds`; or `stop` was set.
        """
        stop = stop or threading.Event()
        results: list[bytes | None] = [None] * len(ranges)
        deadline, wait = None, FIRST_WAIT_SECONDS
        while missing := [number for number, result in enumerate(results) if result is None]:
            failure: Exception | None = None
            for number, answer in zip(missing, self._ask([ranges[number] for number in missing]), strict=True):
                if isinstance(answer, bytes):
                    results[number], deadline, wait = answer, None, FIRST_WAIT_SECONDS
                elif _hopeless(answer):
                    raise self._refusal(ranges[number][0], answer) from answer
                else:
                    failure = answer
            if failure is None:
                continue
            if deadline is None:
                deadline = time.monotonic() + self.retry_seconds
                log.warning(
                    f"{self.address} does not answer ({in_one_line(failure)}): trying for {self.retry_seconds:.0f} s"
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise DataError(
                    f"{self.address} could not be reached for {self.retry_seconds:.0f} s (last error: "
                    f"{in_one_line(failure)}): check the address and the connection, then go on with the run"
                ) from failure
            if stop.wait(min(left, wait * random.uniform(0.5, 1.0))):
                raise DataError(f"reading {self.address} was stopped")
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        return [result for result in results if result is not None]

    def _ask(self, ranges: Sequence[Range]) -> Sequence[bytes | Exception]:
        filesystem, root = self._filesystem()
        paths, starts, stops = ([f"{root}/{name}" for name, _, _ in ranges], *([r[i] for r in ranges] for i in (1, 2)))
        try:
            if filesystem.async_impl:
                return asyn.sync(
                    filesystem.loop,
                    filesystem._cat_ranges,
                    paths,
                    starts,
                    stops,
                    on_error="return",
                    timeout=REQUEST_SECONDS,
                )
            return filesystem.cat_ranges(paths, starts, stops, on_error="return")
        except Exception as error:  # each kind of store raises its own
            return [error] * len(ranges)

    def _filesystem(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None:  # forked: the event loop's thread stayed behind
                asyn.reset_lock()
            protocol = self.address.partition("://")[0]
            try:
                filesystem, root = fsspec.url_to_fs(self.address, **_options(protocol))
            except ImportError as error:
                extra = {"s3a": "s3", "gs": "gcs"}.get(protocol, protocol)
                cure = f"pip install 'gptstar[{extra}]'" if extra in ("s3", "gcs") else "install it"
                said = in_one_line(error)
                raise DataError(f"{self.address} needs a package that is missing ({said}): {cure}") from error
            except Exception as error:  # each kind of store raises its own
                raise DataError(f"{self.address} is no address that can be read ({in_one_line(error)})") from error
            if protocol in ("s3", "s3a"):
                filesystem.retries = 1
            self._opened = os.getpid(), filesystem, root.rstrip("/")
        return self._opened[1:]

    def _refusal(self, name: str, error: Exception) -> DataError:
        where = f"{self.address}/{name}"
        if isinstance(error, FileNotFoundError):
            return DataError(f"{where} is not there: copy the whole folder of shards to this address")
        if _forbidden(error):
            return DataError(
                f"{where} can't be read without permission ({in_one_line(error)}): give the store's credentials, for "
                "S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return DataError(f"{where} can't be read ({in_one_line(error)}): check the address")


def _options(protocol: str) -> dict[str, Any]:
    """No retries inside: s3fs tries 5 times 5 and botocore 5 times each of these, which takes many minutes to fail."""
    if protocol not in ("s3", "s3a"):
        return {}
    users = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {**users, "retries": {"total_max_attempts": 1}}}


def _hopeless(error: Exception) -> bool:
    """Would it fail again however often it is tried?"""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | ValueError):
        return True
    if isinstance(error, TypeError | AttributeError | NotImplementedError) or _forbidden(error):
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in (408, 425, 429)
    return isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EREMCHG)


def _forbidden(error: Exception) -> bool:
    """Is it about who may read? The stores' clients have errors of their own for that, which need not be installed."""
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__

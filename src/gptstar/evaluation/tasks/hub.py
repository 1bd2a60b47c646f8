"""The Hugging Face Hub without long waits: a missing network is detected at once, and the cache is used."""

import contextlib
import http.client
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import datasets
import huggingface_hub

SECONDS = 5
"""The most seconds to wait for an answer of any kind."""


def reachable() -> bool:
    """Whether the Hub answers, possibly through the environment's proxies."""
    if datasets.config.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException):
        return False


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Switch the Hub's libraries to offline mode if the Hub is unreachable; they would retry for half a minute each.

    The downloads of a task's own code then time out after seconds.
    """
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    patience = socket.getdefaulttimeout()
    if not reachable():
        socket.setdefaulttimeout(SECONDS)
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        socket.setdefaulttimeout(patience)
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def revision_of(dataset: Any) -> str | None:
    """Return the commit of a loaded dataset; None if it is unknown."""
    addresses = " ".join(dataset.info.download_checksums or {})  # hf://datasets/OWNER/NAME@COMMIT/FILE
    commit = re.search(r"@([^/]{40})/", addresses)
    return commit and commit[1]

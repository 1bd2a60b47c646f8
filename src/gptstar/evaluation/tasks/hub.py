"""The Hugging Face Hub without its patience: no network is noticed at once, and what is cached is used."""

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
"""For an answer of any kind."""


def reachable() -> bool:
    """Whether the Hub answers at all; through the proxies that the environment names."""
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
    """Where the Hub is out of reach, tell its libraries so: they would retry for half a minute for each dataset.

    Code of tasks that fetches by itself waits for seconds there, and not for ever.
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
    """The commit that a loaded dataset was made from, if it tells."""
    addresses = " ".join(dataset.info.download_checksums or {})  # hf://datasets/OWNER/NAME@COMMIT/FILE
    commit = re.search(r"@([^/]{40})/", addresses)
    return commit and commit[1]

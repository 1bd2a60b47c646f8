"""Fetching what the order of a run is about to read, ahead of the reader and within the cache."""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from torch.utils.data import Sampler

from gptstar.data.storage.manifest import SEGMENT_BYTES
from gptstar.data.storage.remote import RemoteTokens, SegmentCache
from gptstar.data.storage.stream import Tokens
from gptstar.errors import DataError, with_type

PLANNED_SHARE = 0.8
"""Share of the cache that may be planned; the rest is for what is read otherwise."""
STRIDE_SHARE = 1 / 16
"""Share of the plan that a stride may take."""
STRIDE_BATCHES = 1024
CLOSE_SECONDS = 5.0

Span = tuple[Tokens, int, int]
"""As `TokenStream.spans` yields them; those that are not remote are passed over."""


class Stride(NamedTuple):
    """Some batches in a row, and the segments that they read in the order of first need."""

    batches: list[list[int]]
    segments: list[int]


class BatchesAhead(Sampler[list[int]]):
    """The batches of a batch sampler; a thread draws them ahead of the reader, and fetches what they read.

    It goes in strides of many batches, small ones first, so that neighbouring segments, which the order reads one
    here and one there, are fetched by one request. The plan is what lies between the reader and the thread: it is newer
    than anything else in the cache, and so it stays there. The thread waits where the plan would exceed `budget`.

    Args:
        spans: what a batch reads.
        budget: bytes that may be planned; where several ranks share a cache, a rank's share of `PLANNED_SHARE`.
    """

    def __init__(
        self,
        batches: Sampler[list[int]] | Sequence[list[int]],
        spans: Callable[[list[int]], Sequence[Span]],
        cache: SegmentCache,
        budget: int,
    ) -> None:
        self._batches, self._spans, self._cache = batches, spans, cache
        self._budget = max(1, budget // SEGMENT_BYTES)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # torch's Sampler promises no length, ours have one

    def __iter__(self) -> Iterator[list[int]]:
        strides: SimpleQueue[Stride | DataError | None] = SimpleQueue()
        room, stop = threading.Semaphore(self._budget), threading.Event()
        thread = threading.Thread(target=self._fetch, args=(strides, room, stop), name="prefetch", daemon=True)
        thread.start()
        try:
            while isinstance(stride := strides.get(), Stride):
                yield from stride.batches
                if stride.segments:
                    room.release(len(stride.segments))
            if stride is not None:
                raise stride
        finally:
            stop.set()
            room.release(self._budget)
            thread.join(CLOSE_SECONDS)  # a request that hangs may outlast this; the thread ends with the process

    def _fetch(
        self, strides: SimpleQueue[Stride | DataError | None], room: threading.Semaphore, stop: threading.Event
    ) -> None:
        """Be the thread: hand out strides, and at the end None or what went wrong."""
        try:
            for stride in self._strides():
                for _ in stride.segments:
                    room.acquire()
                if stop.is_set():
                    return
                strides.put(stride)
                self._cache.ensure(stride.segments, stop)
            strides.put(None)
        except DataError as error:
            strides.put(error)
        except Exception as error:  # the reader has to hear of it, whatever it is
            failure = DataError(f"reading {self._cache.files.address} ahead failed: {with_type(error)}")
            failure.__cause__ = error
            strides.put(failure)

    def _strides(self) -> Iterator[Stride]:
        n_batches, n_segments = 1, max(1, int(STRIDE_SHARE * self._budget))
        batches: list[list[int]] = []
        segments: dict[int, None] = {}
        for batch in self._batches:
            batches.append(batch)
            for tokens, first, count in self._spans(batch):
                if isinstance(tokens, RemoteTokens):
                    segments |= dict.fromkeys(tokens.segments(first, count))
            if len(batches) >= n_batches or len(segments) >= n_segments:
                yield Stride(batches, list(segments)[: self._budget])  # one batch may need more than all there is
                batches, segments, n_batches = [], {}, min(2 * n_batches, STRIDE_BATCHES)
        if batches:
            yield Stride(batches, list(segments)[: self._budget])

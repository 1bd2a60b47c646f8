"""Fetch remote data ahead of the reader, in the order of the run and within the cache."""

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
"""Share of the cache for prefetching; the rest is for other reads."""
STRIDE_SHARE = 1 / 16
"""Share of the prefetching budget that one stride may take."""
STRIDE_BATCHES = 1024
CLOSE_SECONDS = 5.0

Span = tuple[Tokens, int, int]
"""A span as `TokenStream.spans` yields it; local spans are skipped."""


class Stride(NamedTuple):
    """Consecutive batches, and the segments that they read, in the order of first use."""

    batches: list[list[int]]
    segments: list[int]


class BatchesAhead(Sampler[list[int]]):
    """Yields the batches of a batch sampler, while a thread draws them in advance and fetches what they read.

    The thread advances in strides of many batches, small strides first, so that one request fetches neighbouring
    segments, which the order reads at different times. The plan consists of the batches between the reader and the
    thread. Its segments are the newest in the cache, so they stay there. The thread waits if the plan would exceed
    `budget`.

    Args:
        spans: returns the spans that a batch reads.
        budget: most bytes of the plan; if several ranks share a cache, the rank's share of `PLANNED_SHARE`.
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
            thread.join(CLOSE_SECONDS)  # a hanging request may outlast this; the thread then ends with the process

    def _fetch(
        self, strides: SimpleQueue[Stride | DataError | None], room: threading.Semaphore, stop: threading.Event
    ) -> None:
        """Run in the thread: put strides into the queue, and finally None or the error."""
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
        except Exception as error:  # pass any error on to the reader
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
                yield Stride(batches, list(segments)[: self._budget])  # a single batch may exceed the whole budget
                batches, segments, n_batches = [], {}, min(2 * n_batches, STRIDE_BATCHES)
        if batches:
            yield Stride(batches, list(segments)[: self._budget])

"""Fetching what the order of a run is about to read, ahead of the reader and within the cache."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch.utils.data import Sampler

from gptstar.data.storage.limited_folder import Plan
from gptstar.data.storage.manifest import SEGMENT_BYTES
from gptstar.data.storage.remote import Key, RemoteTokens, SegmentCache, item
from gptstar.data.storage.stream import Tokens
from gptstar.errors import DataError

PLANNED_SHARE = 0.8
"""Of the cache: what is planned at most; the rest is for what is read otherwise."""
STRIDES = 64
"""Planned at most, whatever their size."""
STRIDE_SHARE = 1 / 16
"""Of what may be planned: a stride at most."""
STRIDE_BATCHES = 1024
CLOSE_SECONDS = 5.0

Span = tuple[Tokens, int, int]
"""As `TokenStream.spans` gives them; those that are not remote are passed over."""


@dataclass(frozen=True)
class _Stride:
    """Some batches in a row: the segments they read, in the order of first need, and the number of the batch after."""

    keys: tuple[Key, ...]
    end: int
    plan: Path | None = None


class Prefetcher:
    """A thread that walks a run's reads ahead of the reader and fetches them into the cache.

    It goes in strides of many batches, small ones first, so that neighbouring segments, which the order reads one
    here and one there, are fetched by one request. What is planned is what lies between the reader and its own head:
    the cache never removes that. It stops where this would exceed `budget` and goes on as the reader does.

    Args:
        cache: where the segments go.
        reads: for each batch to come, the spans that it reads; it is iterated by the thread.
        budget: bytes that may be planned; where several ranks share a cache, a rank's share of `PLANNED_SHARE`.
    """

    def __init__(self, cache: SegmentCache, reads: Iterable[Sequence[Span]], budget: int | None = None) -> None:
        self._cache, self._reads = cache, reads
        self._budget = int(PLANNED_SHARE * cache.folder.limit) if budget is None else budget
        self._planned: deque[_Stride] = deque()
        self._uses: Counter[Key] = Counter()  # in how many planned strides a segment is
        self._consumed = 0
        self._error: DataError | None = None
        self._stop, self._progress = threading.Event(), threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def consumed(self, batches: int) -> None:
        """Tell that the reader is done with this many batches since the start; before each of its reads.

        Raises:
            DataError: what went wrong in the thread.
        """
        with self._progress:
            self._consumed = max(self._consumed, batches)
            self._progress.notify()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop, and protect nothing any longer."""
        self._stop.set()
        with self._progress:
            self._progress.notify()
        self._thread.join(CLOSE_SECONDS)  # a request that hangs may outlast this; the thread ends with the process

    def _run(self) -> None:
        try:
            with Plan(self._cache.folder) as plan:
                for stride in self._strides():
                    if not self._wait(stride, plan):
                        return
                    if stride.end > self._consumed:  # otherwise the reader was faster
                        self._fetch(stride, plan)
                while self._planned and self._wait(None, plan):
                    pass
        except DataError as error:
            self._error = error
        except Exception as error:  # the reader has to hear of it, whatever it is
            self._error = DataError(f"reading {self._cache.files.address} ahead failed: {error!r}")
            self._error.__cause__ = error

    def _strides(self) -> Iterator[_Stride]:
        batches, most = 1, max(1, int(STRIDE_SHARE * self._budget) // SEGMENT_BYTES)
        keys: dict[Key, None] = {}
        start = end = 0
        for end, spans in enumerate(self._reads, 1):
            for tokens, first, count in spans:
                if isinstance(tokens, RemoteTokens):
                    keys |= dict.fromkeys(tokens.keys(first, count))
            if end - start >= batches or len(keys) >= most:
                yield _Stride(tuple(keys), end)
                keys, start, batches = {}, end, min(2 * batches, STRIDE_BATCHES)
        if keys:
            yield _Stride(tuple(keys), end)

    def _wait(self, stride: _Stride | None, plan: Plan) -> bool:
        """Until there is room for a stride, or until the reader goes on; False where it is time to stop."""
        while not self._stop.is_set():
            freed = False
            while self._planned and self._planned[0].end <= self._consumed:
                self._release(self._planned.popleft(), plan)
                freed = True
            if freed if stride is None else self._has_room(stride):
                return True
            with self._progress:
                if not self._stop.is_set() and not (self._planned and self._planned[0].end <= self._consumed):
                    self._progress.wait()
        return False

    def _has_room(self, stride: _Stride) -> bool:
        new = sum(key not in self._uses for key in stride.keys)
        within = (len(self._uses) + new) * SEGMENT_BYTES <= self._budget
        return not self._planned or (within and len(self._planned) < STRIDES)

    def _fetch(self, stride: _Stride, plan: Plan) -> None:
        keys = stride.keys[: max(1, self._budget // SEGMENT_BYTES)]  # one batch may need more than all there is
        path = plan.add(map(item, keys))
        self._planned.append(_Stride(keys, stride.end, path))
        self._uses.update(keys)
        self._cache.ensure(keys, self._stop)

    def _release(self, stride: _Stride, plan: Plan) -> None:
        assert stride.plan is not None
        plan.drop(stride.plan)
        self._uses.subtract(stride.keys)
        for key in stride.keys:
            if not self._uses[key]:
                del self._uses[key]


class BatchesAhead(Sampler[list[int]]):
    """The batches of a batch sampler; while they are iterated, a `Prefetcher` fetches what the next ones read.

    Args:
        batches: iterated twice at once, so each iteration has to give the same.
        spans: what a batch reads.
        lag: batches that the loader draws before it has read them: its workers times their `prefetch_factor`.
        budget: as for `Prefetcher`.
    """

    def __init__(
        self,
        batches: Sampler[list[int]] | Sequence[list[int]],
        spans: Callable[[list[int]], Sequence[Span]],
        cache: SegmentCache,
        *,
        lag: int = 0,
        budget: int | None = None,
    ) -> None:
        self._batches, self._spans, self._cache = batches, spans, cache
        self._lag, self._budget = lag, budget

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # torch's Sampler promises no length, ours have one

    def __iter__(self) -> Iterator[list[int]]:
        with Prefetcher(self._cache, (self._spans(batch) for batch in self._batches), self._budget) as ahead:
            for number, batch in enumerate(self._batches):
                ahead.consumed(number - self._lag)
                yield batch

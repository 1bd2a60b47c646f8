"""Remote shards, read in segments of 64 KiB through a cache on the local disk."""

import contextlib
import hashlib
import io
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from gptstar.data.config import NAME
from gptstar.data.storage.arrays import load_array
from gptstar.data.storage.manifest import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    Manifest,
    Shard,
    parse_manifest,
    segment_hash,
    token_dtype,
)
from gptstar.data.storage.remote_files import COPY_AGAIN, RemoteFiles
from gptstar.data.storage.segment_slots import EMPTY, SLOT_BYTES, SegmentSlots
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError

GROUP_SEGMENTS = 16
"""Most neighbouring segments per request; one process at a time fetches such a group."""
GROUPS_AT_ONCE = 16
TRIES = 4
"""Most attempts to fetch a segment whose hash is wrong."""
LEAST_SEGMENTS = 16
"""Size of the smallest useful cache, in bytes."""


class SegmentCache:
    """A cache of remote segments on the local disk: shared by processes, fetched once, checked by hash.

    Segments are numbered through all shards of the manifest. The cache can be pickled and survives a fork.

    Args:
        limit: most bytes of all files in the folder together.
    """

    def __init__(self, files: RemoteFiles, manifest: Manifest, folder: Path, limit: int) -> None:
        self.files, self.folder, self.limit = files, folder, limit
        self.dtype = token_dtype(manifest.n_vocab)
        self._shards = manifest.shards
        counts = [-(-self._size(shard) // SEGMENT_BYTES) for shard in manifest.shards]
        *self._firsts, n_segments = accumulate(counts, initial=0)
        self._first_of = {shard.name: first for shard, first in zip(manifest.shards, self._firsts, strict=True)}
        overhead = sum(HEADER_BYTES + 8 * count for count in counts) + 4 * (1 + n_segments)
        n_slots = (limit - overhead) // SLOT_BYTES
        if n_slots < LEAST_SEGMENTS:
            least = overhead + LEAST_SEGMENTS * SLOT_BYTES
            raise DataError(f"data.cache_bytes={limit} is too small to read {files.address}: give {least} or more")
        self._slots = SegmentSlots(folder, n_slots, n_segments)
        self._hashes: dict[str, np.ndarray] = {}
        self._fetched: Counter[int] = Counter()  # per thread, so that no count is lost

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hashes": {}, "_fetched": Counter()}

    @property
    def fetched_bytes(self) -> int:
        """Number of bytes of tokens and hashes that this process has fetched."""
        return self._fetched.total()

    def tokens(self, shard: Shard) -> "RemoteTokens":
        """Return the tokens of a shard."""
        return RemoteTokens(self, shard, self._first_of[shard.name])

    def read(self, segments: Sequence[int]) -> bytes:
        """Read neighbouring segments, from the disk where possible.

        Raises:
            DataError: a segment can't be fetched, or arrives damaged each time, or the disk is full.
        """
        contents = self._on_disk(segments)
        for some in _rounds([segment for segment in segments if segment not in contents]):
            contents |= self._fetch(some)
        return b"".join(contents[segment] for segment in segments)

    def holds(self, segments: Sequence[int]) -> np.ndarray:
        """Return which segments are on the disk, whether intact or damaged: `(segment,)`, bool."""
        return self._slots.find(segments) != EMPTY

    def ensure(self, segments: Sequence[int], stop: threading.Event | None = None) -> None:
        """Fetch the segments that are not on the disk, and mark all as new. Raises DataError like `read`."""
        self._slots.renew(segments)
        missing = np.asarray(segments, dtype=np.int64)[~self.holds(segments)].tolist()
        for some in _rounds(missing):
            self._fetch(some, stop)

    def _fetch(self, segments: Sequence[int], stop: threading.Event | None = None) -> dict[int, bytes]:
        """Fetch, check and store segments; read those that another process has just stored from the disk."""
        wrong: dict[int, set[int]] = {}
        with self._slots.fetching(segment // GROUP_SEGMENTS for segment in segments):
            contents = self._on_disk(segments, stop)
            for _ in range(TRIES):
                missing = [segment for segment in segments if segment not in contents]
                if not missing:
                    return contents
                arrived = self._request(missing, stop)
                sound = {segment: content for segment, content in arrived.items() if self._is_sound(segment, content)}
                self._slots.store(sound)
                contents |= sound
                for segment in arrived.keys() - sound.keys():
                    wrong.setdefault(segment, set()).add(segment_hash(arrived[segment]))
        damaged = next((segment for segment in segments if segment not in contents), None)
        if damaged is None:
            return contents
        shard, start, end = self._extent(damaged)
        where = f"{self.files.address}/{shard.name}.npy (bytes {start} to {end})"
        if len(wrong[damaged]) > 1:
            raise DataError(f"{where} arrived damaged {TRIES} times, each time differently: check the connection")
        raise DataError(f"{where} is damaged at its source (the same content {TRIES} times): {COPY_AGAIN} again")

    def _request(self, segments: Sequence[int], stop: threading.Event | None) -> dict[int, bytes]:
        """Fetch segments; one request covers neighbours of the same group and shard."""
        runs: list[list[int]] = []
        for segment in sorted(segments):
            begins = segment % GROUP_SEGMENTS == 0 or self._extent(segment)[1] == 0
            if begins or not runs or segment > runs[-1][-1] + 1:
                runs.append([])
            runs[-1].append(segment)
        ranges = []
        for run in runs:
            (shard, start, _), (_, _, end) = self._extent(run[0]), self._extent(run[-1])
            ranges.append((f"{shard.name}.npy", start, end))
        contents: dict[int, bytes] = {}
        for run, (name, start, end), content in zip(runs, ranges, self.files.read_ranges(ranges, stop), strict=True):
            self._fetched[threading.get_ident()] += len(content)
            if len(content) > end - start:
                raise DataError(
                    f"{self.files.address}/{name} was sent whole in answer to a range request: serve it from a store "
                    "that supports range requests"
                )
            for number, segment in enumerate(run):
                contents[segment] = content[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES]
        return contents

    def _load_hashes(self, segments: Sequence[int], stop: threading.Event | None = None) -> None:
        """Load the hashes of the shards that contain these segments, from the disk or else from the address."""
        shards = {shard.name: shard for shard, _, _ in map(self._extent, segments)}
        unknown = [shard for shard in shards.values() if shard.name not in self._hashes]
        for shard in unknown:
            self._take_hashes(shard, self._slots.read_file(_hashes_name(shard)))
        for _ in range(TRIES):
            unknown = [shard for shard in unknown if shard.name not in self._hashes]
            ranges = [(_hashes_name(shard), None, None) for shard in unknown]
            for shard, content in zip(unknown, self.files.read_ranges(ranges, stop), strict=True):
                self._fetched[threading.get_ident()] += len(content)
                if self._take_hashes(shard, content):
                    self._slots.store_file(_hashes_name(shard), content)
        for shard in unknown:
            if shard.name not in self._hashes:
                where = f"{self.files.address}/{_hashes_name(shard)}"
                raise DataError(f"{where} was damaged {TRIES} times: check the connection, or {COPY_AGAIN} again")

    def _take_hashes(self, shard: Shard, content: bytes) -> bool:
        sound = hashlib.sha256(content).hexdigest() == shard.segments_sha256
        if sound:
            self._hashes[shard.name] = self._parsed_hashes(shard, content)
        return sound

    def _parsed_hashes(self, shard: Shard, content: bytes) -> np.ndarray:
        with contextlib.suppress(OSError, ValueError):
            hashes = load_array(io.BytesIO(content))
            if (hashes.dtype, hashes.shape) == (np.dtype("<u8"), (-(-self._size(shard) // SEGMENT_BYTES),)):
                return hashes
        where = f"{self.files.address}/{_hashes_name(shard)}"
        raise DataError(f"{where} does not hold one hash for each 64 KiB of its shard: {COPY_AGAIN} again")

    def _on_disk(self, segments: Sequence[int], stop: threading.Event | None = None) -> dict[int, bytes]:
        """Read the segments that are on the disk and intact."""
        self._load_hashes(segments, stop)
        contents = {}
        for segment in segments:
            _, start, end = self._extent(segment)
            content = self._slots.read(segment)[: end - start]
            if self._is_sound(segment, content):
                contents[segment] = content
        return contents

    def _is_sound(self, segment: int, content: bytes) -> bool:
        shard, start, _ = self._extent(segment)
        return segment_hash(content) == self._hashes[shard.name][start // SEGMENT_BYTES]

    def _extent(self, segment: int) -> tuple[Shard, int, int]:
        """Return a segment's shard, its first byte in the shard's file, and the byte after its last one."""
        number = bisect_right(self._firsts, segment) - 1
        shard, start = self._shards[number], (segment - self._firsts[number]) * SEGMENT_BYTES
        return shard, start, min(start + SEGMENT_BYTES, self._size(shard))

    def _size(self, shard: Shard) -> int:
        return HEADER_BYTES + shard.tokens * self.dtype.itemsize


class RemoteTokens:
    """The tokens of one remote shard, fetched when they are sliced; `first` is the shard's first segment."""

    def __init__(self, cache: SegmentCache, shard: Shard, first: int) -> None:
        self.cache, self.shard, self._first = cache, shard, first

    def __len__(self) -> int:
        return self.shard.tokens

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        if stop <= start or step < 1:
            return np.empty(0, dtype=self.cache.dtype)
        segments = self.segments(start, stop - start)
        content = self.cache.read(segments)
        offset = HEADER_BYTES + start * self.cache.dtype.itemsize - (segments[0] - self._first) * SEGMENT_BYTES
        return np.frombuffer(content, dtype=self.cache.dtype, count=stop - start, offset=offset)[::step]

    def segments(self, start: int, count: int) -> range:
        """Return the numbers of the segments with tokens `[start, start + count)`."""
        first, last = (HEADER_BYTES + at * self.cache.dtype.itemsize for at in (start, start + count))
        return range(self._first + first // SEGMENT_BYTES, self._first - (-last // SEGMENT_BYTES))


def open_shards(address: str, cache_bytes: int) -> tuple[Manifest, Tokenizer, SegmentCache]:
    """Open the folder of shards at an address, with a cache of `cache_bytes` in the user's cache folder.

    Raises:
        DataError: the folder is missing, damaged or can't be read; names the file.
    """
    files = RemoteFiles(address)
    where = f"{files.address}/manifest.json"
    manifest = parse_manifest(files.read("manifest.json"), where, f"{COPY_AGAIN} again")
    for shard in manifest.shards:
        if shard.place is not None:
            raise DataError(
                f"{where} refers to tokens outside the folder ({shard.place.file:.60}): read it on the machine that "
                "has them"
            )
        if not all(map(NAME.fullmatch, shard.name.split("/"))):  # the name becomes a local file name
            raise DataError(f"{where} names a shard {shard.name!r}, which is not a shard's name: {COPY_AGAIN} again")
    folder = user_cache_path("gptstar") / "segments" / manifest.fingerprint / str(cache_bytes)
    cache = SegmentCache(files, manifest, folder, cache_bytes)
    content = files.read("tokenizer.json")
    try:
        return manifest, Tokenizer(content.decode()), cache
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{files.address}/tokenizer.json: {error}") from error


def _hashes_name(shard: Shard) -> str:
    return f"{shard.name}.segments.npy"


def _rounds(segments: Sequence[int]) -> Iterator[list[int]]:
    """Yield the segments to fetch together, ordered by the first segment of each group."""
    groups: dict[int, list[int]] = {}
    for segment in segments:
        groups.setdefault(segment // GROUP_SEGMENTS, []).append(segment)
    in_order = list(groups.values())
    for first in range(0, len(in_order), GROUPS_AT_ONCE):
        yield [segment for group in in_order[first : first + GROUPS_AT_ONCE] for segment in group]

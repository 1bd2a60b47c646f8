"""Shards at an address, read in segments of 64 KiB through a cache on the local disk."""

import hashlib
import io
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from gptstar.data.config import NAME
from gptstar.data.storage.limited_folder import LimitedFolder
from gptstar.data.storage.manifest import HEADER_BYTES, SEGMENT_BYTES, Manifest, Shard, parse_manifest, segment_hash
from gptstar.data.storage.remote_files import RemoteFiles
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError

RANGE_SEGMENTS = 16
"""At most this many neighbours are fetched by one request."""
RANGES_AT_ONCE = 16
TRIES = 4
"""How often a segment is fetched whose hash is wrong."""
LEAST_SEGMENTS = 16
"""The smallest cache that is of use."""

Key = tuple[str, int]
"""A shard's name and the number of a segment of its tokens, or `HASHES`."""
HASHES = -1
"""Stands for the file of the segments' hashes, which is fetched and kept like a segment."""
COPY_AGAIN = "copy the folder of shards to this address again"


class SegmentCache:
    """Segments of remote shards on the local disk: shared by processes, fetched once, checked on the way in and out.

    It can be pickled, and carried over a fork.

    Args:
        files: where the shards are.
        folder: of the cache.
        limit: bytes that all files in it together never exceed.
    """

    def __init__(self, files: RemoteFiles, manifest: Manifest, folder: Path, limit: int) -> None:
        least = LEAST_SEGMENTS * SEGMENT_BYTES
        if limit < least:
            raise DataError(f"data.cache_bytes={limit} is too little to read {files.address}: give {least} or more")
        self.files, self.folder = files, LimitedFolder(folder, limit)
        self.dtype = np.dtype("<u2" if manifest.n_vocab <= 2**16 else "<u4")
        self._shards = {shard.name: shard for shard in manifest.shards}
        self._hashes: dict[str, np.ndarray] = {}
        self._sound: dict[str, bytearray] = {}  # by segment: has this process checked what is on the disk?
        self._fetched: dict[int, int] = {}  # by thread, so that none loses another's count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hashes": {}, "_sound": {}, "_fetched": {}}

    @property
    def fetched_bytes(self) -> int:
        """Bytes of tokens and hashes that this process has fetched."""
        return sum(list(self._fetched.values()))

    def tokens(self, shard: Shard) -> "RemoteTokens":
        """The tokens of a shard."""
        return RemoteTokens(self, shard)

    def read(self, shard: str, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of a shard's token file, from the disk as far as they are there.

        Raises:
            DataError: they can't be fetched, or arrive damaged each time, or the disk is full.
        """
        within = {(shard, number): _within(number, start, stop) for number in segments(start, stop)}
        parts = {key: self._on_disk(key, *where) for key, where in within.items()}
        missing = [key for key, part in parts.items() if part is None]
        if missing:
            parts |= {key: whole[slice(*within[key])] for key, whole in self._obtain(missing).items()}
        return b"".join(part for part in parts.values() if part is not None)

    def ensure(self, wanted: Iterable[Key], stop: threading.Event | None = None) -> None:
        """Fetch those segments that are not on the disk, in the order they are given in.

        Raises:
            DataError: as `read`; or `stop` was set.
        """
        for some in _rounds([key for key in wanted if not self._holds(key)]):
            self._fetch(some, stop)

    def _obtain(self, wanted: list[Key], stop: threading.Event | None = None) -> dict[Key, bytes]:
        """The contents of segments that were not on the disk a moment ago."""
        contents: dict[Key, bytes] = {}
        while missing := [key for key in wanted if key not in contents]:
            for some in _rounds(missing):
                contents |= self._fetch(some, stop)
            for key in missing:  # what another process was just fetching
                if key not in contents and (content := self._on_disk(key)) is not None:
                    contents[key] = content
        return contents

    def _fetch(self, wanted: list[Key], stop: threading.Event | None) -> dict[Key, bytes]:
        """Fetch, check and store; leaves out what others have stored in the meantime."""
        self._learn_hashes({shard for shard, number in wanted if number != HASHES}, stop)
        contents: dict[Key, bytes] = {}
        wrong: dict[Key, set[int]] = {}
        with self.folder.fetching(map(_group, wanted)):
            remaining = [key for key in wanted if not self._holds(key)]
            for _ in range(TRIES):
                arrived = self._request(remaining, stop)
                good = {key: content for key, content in arrived.items() if self._is_sound(key, content)}
                self.folder.store({item(key): content for key, content in good.items()})
                contents |= good
                remaining = [key for key in remaining if key not in good]
                if not remaining:
                    return contents
                for key in remaining:
                    wrong.setdefault(key, set()).add(segment_hash(arrived[key]))
        key = remaining[0]
        name, start, end = self._extent(key)
        where = f"{self.files.address}/{name} (bytes {start} to {end})"
        if len(wrong[key]) > 1:
            raise DataError(f"{where} was damaged on the way {TRIES} times, each time otherwise: check the connection")
        raise DataError(f"{where} is damaged where it is stored, the same {TRIES} times: {COPY_AGAIN}")

    def _request(self, keys: list[Key], stop: threading.Event | None) -> dict[Key, bytes]:
        """Fetch, neighbours by one request."""
        runs: list[list[Key]] = []
        for key in sorted(keys):
            shard, number = key
            if runs and number > 0 and runs[-1][-1] == (shard, number - 1) and _group(key) == _group(runs[-1][-1]):
                runs[-1].append(key)
            else:
                runs.append([key])
        ranges = [(*self._extent(run[0])[:2], self._extent(run[-1])[2]) for run in runs]
        out: dict[Key, bytes] = {}
        for run, (name, start, end), content in zip(runs, ranges, self.files.read_ranges(ranges, stop), strict=True):
            thread = threading.get_ident()
            self._fetched[thread] = self._fetched.get(thread, 0) + len(content)
            if len(content) > end - start:
                raise DataError(
                    f"{self.files.address}/{name} comes whole where a part is asked for: serve it from a store that "
                    "answers range requests"
                )
            for key in run:
                _, first, last = self._extent(key)
                out[key] = content[first - start : last - start]
        return out

    def _learn_hashes(self, shards: set[str], stop: threading.Event | None = None) -> None:
        unknown = [(shard, HASHES) for shard in sorted(shards) if shard not in self._hashes]
        stored = {key: self._on_disk(key) for key in unknown}
        fetched = self._obtain([key for key, content in stored.items() if content is None], stop)
        for (shard, _), content in (stored | fetched).items():
            assert content is not None
            self._hashes[shard] = np.load(io.BytesIO(content))

    def _extent(self, key: Key) -> tuple[str, int, int]:
        """The file that holds a segment, its first byte there, and the one after its last."""
        shard, number = key
        size = HEADER_BYTES + self._shards[shard].tokens * self.dtype.itemsize
        if number == HASHES:
            return f"{shard}.segments.npy", 0, HEADER_BYTES + 8 * -(-size // SEGMENT_BYTES)
        return f"{shard}.npy", number * SEGMENT_BYTES, min((number + 1) * SEGMENT_BYTES, size)

    def _holds(self, key: Key) -> bool:
        _, start, end = self._extent(key)
        return self.folder.holds(item(key), end - start)

    def _on_disk(self, key: Key, start: int = 0, stop: int | None = None) -> bytes | None:
        """Bytes `[start, stop)` of a segment that is on the disk; None if it is not, or is damaged."""
        _, first, end = self._extent(key)
        shard, number = key
        if number != HASHES and shard in self._sound and self._sound[shard][number]:
            return self.folder.read(item(key), end - first, start, end - first if stop is None else stop)
        whole = self.folder.read(item(key), end - first, 0, end - first)
        if whole is None:
            return None
        if number != HASHES:
            self._learn_hashes({shard})
        if not self._is_sound(key, whole):
            self.folder.discard(item(key))
            return None
        if number != HASHES:
            self._sound.setdefault(shard, bytearray(len(self._hashes[shard])))[number] = True
        return whole[start:stop]

    def _is_sound(self, key: Key, content: bytes) -> bool:
        shard, number = key
        if number == HASHES:
            return hashlib.sha256(content).hexdigest() == self._shards[shard].segments_sha256
        return segment_hash(content) == self._hashes[shard][number]


class RemoteTokens:
    """The tokens of one remote shard, read when they are sliced."""

    def __init__(self, cache: SegmentCache, shard: Shard) -> None:
        self.cache, self.shard = cache, shard

    def __len__(self) -> int:
        return self.shard.tokens

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        if stop <= start or step < 1:
            return np.empty(0, dtype=self.cache.dtype)
        content = self.cache.read(self.shard.name, *self._bytes(start, stop))
        return np.frombuffer(content, dtype=self.cache.dtype)[::step]

    def keys(self, start: int, count: int) -> list[Key]:
        """The segments that hold tokens `[start, start + count)`."""
        return [(self.shard.name, number) for number in segments(*self._bytes(start, start + count))]

    def _bytes(self, start: int, stop: int) -> tuple[int, int]:
        item = self.cache.dtype.itemsize
        return HEADER_BYTES + start * item, HEADER_BYTES + stop * item


def open_shards(address: str, cache_bytes: int) -> tuple[Manifest, Tokenizer, SegmentCache]:
    """The folder of shards at an address.

    Args:
        cache_bytes: room for its segments in the user's cache.

    Raises:
        DataError: there is none, it can't be read, or it is damaged; names the file.
    """
    files = RemoteFiles(address)
    where = f"{files.address}/manifest.json"
    manifest = parse_manifest(files.read("manifest.json"), where, COPY_AGAIN)
    for shard in manifest.shards:
        if not all(map(NAME.fullmatch, shard.name.split("/"))):  # it becomes a folder's name here
            raise DataError(f"{where} names a shard {shard.name!r}, which is no name of a shard: {COPY_AGAIN}")
    folder = user_cache_path("gptstar") / "segments" / manifest.fingerprint
    cache = SegmentCache(files, manifest, folder, cache_bytes)
    return manifest, _tokenizer(cache, manifest), cache


def _tokenizer(cache: SegmentCache, manifest: Manifest) -> Tokenizer:
    """The tokenizer, from the cache if it is there and is the manifest's."""
    if (kept := cache.folder.kept("tokenizer.json")) is not None:
        try:
            tokenizer = Tokenizer(kept.decode())
            if tokenizer.fingerprint == manifest.tokenizer:
                return tokenizer
        except (DataError, UnicodeDecodeError):
            pass  # damaged on the disk
    content = cache.files.read("tokenizer.json")
    try:
        tokenizer = Tokenizer(content.decode())
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{cache.files.address}/tokenizer.json: {error}") from error
    cache.folder.keep("tokenizer.json", content)
    return tokenizer


def segments(start: int, stop: int) -> range:
    """Numbers of the segments that hold bytes `[start, stop)` of a file."""
    return range(start // SEGMENT_BYTES, -(-stop // SEGMENT_BYTES))


def _within(number: int, start: int, stop: int) -> tuple[int, int]:
    """What of bytes `[start, stop)` of a file lies in a segment, counted from the segment's first byte."""
    first = number * SEGMENT_BYTES
    return max(0, start - first), min(SEGMENT_BYTES, stop - first)


def item(key: Key) -> str:
    """The name of a segment in the cache's folder."""
    return f"{key[0]}/{'hashes' if key[1] == HASHES else key[1]}"


def _group(key: Key) -> str:
    """Neighbours that are fetched by one request at most, and by one process at a time."""
    return f"{key[0]}/{key[1] // RANGE_SEGMENTS}"


def _rounds(keys: list[Key]) -> Iterator[list[Key]]:
    """Segments that are fetched together, in the order of each group's first."""
    groups: dict[str, list[Key]] = {}
    for key in keys:
        groups.setdefault(_group(key), []).append(key)
    in_order = list(groups.values())
    for first in range(0, len(in_order), RANGES_AT_ONCE):
        yield [key for group in in_order[first : first + RANGES_AT_ONCE] for key in group]

"""A file of slots on the local disk through which the processes of a machine share segments of remote files."""

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from gptstar.data.storage.manifest import SEGMENT_BYTES
from gptstar.errors import DataError
from gptstar.files import remove, whole_file

SLOT_BYTES = SEGMENT_BYTES + 8
"""Bytes of a slot in the file of slots and in the table."""
EMPTY = -1
STRIPES = 1024
POLL_SECONDS = 0.003


class SegmentSlots:
    """Stores segments by number in the file `segments`; a new segment replaces the oldest.

    The file `table` holds int32 values: the slot to fill next; for each slot, whether its segment was renewed, and the
    segment's number; and for each segment, its slot, which is valid only if that slot has the segment's number. A slot
    can hold wrong content if a process was killed or is still writing, so readers check the hash.

    Args:
        n_slots: number of slots; if an earlier run had another number, the slots start empty.
        n_segments: number of segments that exist.
    """

    def __init__(self, folder: Path, n_slots: int, n_segments: int) -> None:
        self.folder, self._n_slots, self._n_segments = folder, n_slots, n_segments
        table, n_items = folder / "table", 1 + 2 * n_slots + n_segments
        with self._writing():
            if not table.is_file() or table.stat().st_size != 4 * n_items:
                for path in folder.iterdir():
                    if path.name != "locks":
                        remove(path)
                empty = np.zeros(n_items, dtype=np.int32)
                empty[1 + n_slots : 1 + 2 * n_slots] = EMPTY
                empty.tofile(table)
            self._table = np.memmap(table, dtype=np.int32, mode="r+")
            self._file = os.open(folder / "segments", os.O_RDWR | os.O_CREAT)
        weakref.finalize(self, os.close, self._file)
        self._renewed, self._segment_in, self._slot_of = np.split(self._table[1:], [n_slots, 2 * n_slots])

    def __reduce__(self) -> tuple[type["SegmentSlots"], tuple[Path, int, int]]:
        return SegmentSlots, (self.folder, self._n_slots, self._n_segments)

    def find(self, segments: Sequence[int]) -> np.ndarray:
        """Return the slot of each segment in `(segment,)`, or `EMPTY`."""
        numbers = np.asarray(segments, dtype=np.int64)
        slots = self._slot_of[numbers].clip(0, self._n_slots - 1)
        return np.where(self._segment_in[slots] == numbers, slots, EMPTY)

    def read(self, segment: int) -> bytes:
        """Read a segment's slot; empty if it has none. The content may be damaged, or longer than the segment."""
        (slot,) = self.find([segment]).tolist()
        if slot == EMPTY:
            return b""
        return os.pread(self._file, SEGMENT_BYTES, slot * SEGMENT_BYTES)

    def renew(self, segments: Sequence[int]) -> None:
        """Mark stored segments as new, so that they are kept longer."""
        slots = self.find(segments)
        self._renewed[slots[slots != EMPTY]] = True

    def store(self, contents: Mapping[int, bytes]) -> None:
        """Write segments; raise DataError if the disk is full or can't be written."""
        with self._writing():
            for segment, content in contents.items():
                (slot,) = self.find([segment]).tolist()
                if slot == EMPTY:
                    slot = self._oldest_slot()
                self._segment_in[slot], self._slot_of[segment] = segment, slot
                os.pwrite(self._file, content, slot * SEGMENT_BYTES)

    def read_file(self, name: str) -> bytes:
        """Read a file next to the slots; empty if it is missing."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else b""

    def store_file(self, name: str, content: bytes) -> None:
        """Write a file next to the slots. Raises DataError like `store`."""
        with self._writing():
            (self.folder / name).parent.mkdir(exist_ok=True)
            with whole_file(self.folder / name) as temporary:
                temporary.write_bytes(content)

    @contextmanager
    def fetching(self, groups: Iterable[int]) -> Iterator[None]:
        """Hold a lock on fetching these groups of segments; wait for other threads and processes that hold one."""
        with self._refusing(), ExitStack() as held:
            for stripe in sorted({group % STRIPES for group in groups}):  # the same order everywhere prevents deadlocks
                held.enter_context(self._lock(f"{stripe:04d}"))
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._refusing(), self._lock("write"):
            yield

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"can't write to the cache {self.folder} ({error.strerror}): free some space there"
            ) from error

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path).acquire(poll_interval=POLL_SECONDS):
            yield

    def _oldest_slot(self) -> int:
        """Return the next slot in a circle, skipping renewed slots once."""
        while True:
            slot = int(self._table[0])
            self._table[0] = (slot + 1) % self._n_slots
            if not self._renewed[slot]:
                return slot
            self._renewed[slot] = False

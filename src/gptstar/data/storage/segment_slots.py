"""A file of slots on the local disk in which the processes of one machine share segments of remote files."""

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
"""What a slot takes in the file of slots and in the table."""
EMPTY = -1
STRIPES = 1024
POLL_SECONDS = 0.003


class SegmentSlots:
    """Segments by number, in `segments`; a new one takes the slot of the oldest.

    `table` holds int32: the slot that is filled next; for each slot whether its segment was renewed, and the segment's
    number; and for each segment its slot, which counts where that slot has the segment's number. A slot can hold wrong
    contents, where a process was killed or is just writing: readers compare what they read with its hash.

    Args:
        n_slots: with another number than in an earlier run, the slots begin empty.
        n_segments: how many there are to choose from.
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
        """Find the slot of each of some segments, `(segment,)`: `EMPTY` where it has none."""
        numbers = np.asarray(segments, dtype=np.int64)
        slots = self._slot_of[numbers].clip(0, self._n_slots - 1)
        return np.where(self._segment_in[slots] == numbers, slots, EMPTY)

    def read(self, segment: int) -> bytes:
        """Read a segment's slot: nothing where it has none. The content may be damaged, or longer than the segment."""
        (slot,) = self.find([segment]).tolist()
        if slot == EMPTY:
            return b""
        return os.pread(self._file, SEGMENT_BYTES, slot * SEGMENT_BYTES)

    def renew(self, segments: Sequence[int]) -> None:
        """Keep those segments that are in a slot as long as if they were new."""
        slots = self.find(segments)
        self._renewed[slots[slots != EMPTY]] = True

    def store(self, contents: Mapping[int, bytes]) -> None:
        """Write segments. Raises DataError if the disk is full or refuses to be written on."""
        with self._writing():
            for segment, content in contents.items():
                (slot,) = self.find([segment]).tolist()
                if slot == EMPTY:
                    slot = self._oldest_slot()
                self._segment_in[slot], self._slot_of[segment] = segment, slot
                os.pwrite(self._file, content, slot * SEGMENT_BYTES)

    def read_file(self, name: str) -> bytes:
        """Read a file that lies beside the slots; nothing where it is missing."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else b""

    def store_file(self, name: str, content: bytes) -> None:
        """Write a file beside the slots. Raises DataError as `store`."""
        with self._writing():
            (self.folder / name).parent.mkdir(exist_ok=True)
            with whole_file(self.folder / name) as temporary:
                temporary.write_bytes(content)

    @contextmanager
    def fetching(self, groups: Iterable[int]) -> Iterator[None]:
        """Hold the right to fetch some groups of segments; waits for other threads and processes that hold it."""
        with self._refusing(), ExitStack() as held:
            for stripe in sorted({group % STRIPES for group in groups}):  # one order for all: no deadlock
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
            raise DataError(f"can't write to the cache {self.folder} ({error.strerror}): make room there") from error

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        path = self.folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path).acquire(poll_interval=POLL_SECONDS):
            yield

    def _oldest_slot(self) -> int:
        """Go round the slots, and once past those that were renewed."""
        while True:
            slot = int(self._table[0])
            self._table[0] = (slot + 1) % self._n_slots
            if not self._renewed[slot]:
                return slot
            self._renewed[slot] = False

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from gptstar.data.storage.manifest import SEGMENT_BYTES
from gptstar.data.storage.segment_slots import EMPTY, SLOT_BYTES, SegmentSlots
from gptstar.errors import DataError

N_SEGMENTS = 97


def content(segment: int) -> bytes:
    return bytes([segment]) * SEGMENT_BYTES


def held(slots: SegmentSlots) -> set[int]:
    numbers = range(N_SEGMENTS)
    return {number for number, slot in zip(numbers, slots.find(numbers), strict=True) if slot != EMPTY}


def fill(slots: SegmentSlots, segments: range) -> None:
    slots.store({segment: content(segment) for segment in segments})


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_oldest_makes_room_and_what_is_renewed_stays(tmp_path: Path) -> None:
    slots = SegmentSlots(tmp_path, 5, N_SEGMENTS)
    fill(slots, range(5))
    assert slots.read(3) == content(3)
    slots.renew([0, 2, 50])
    fill(slots, range(5, 7))
    assert held(slots) == {0, 2, 4, 5, 6}
    fill(slots, range(7, 10))
    assert held(slots) == {2, 6, 7, 8, 9}  # in the order of the slots, once around
    assert slots.read(0) == b""
    assert total(tmp_path) == 5 * SLOT_BYTES + 4 * (1 + N_SEGMENTS)


def test_what_is_renewed_in_time_stays_however_many_pass(tmp_path: Path) -> None:
    slots = SegmentSlots(tmp_path, 10, N_SEGMENTS)
    fill(slots, range(1))
    for segment in range(1, 90):
        fill(slots, range(segment, segment + 1))
        if segment % 8 == 0:
            slots.renew([0])
        assert 0 in held(slots)


def test_processes_share_the_slots(tmp_path: Path) -> None:
    slots = SegmentSlots(tmp_path, 4, N_SEGMENTS)
    fill(slots, range(2))
    program = (
        "import os; from pathlib import Path; from gptstar.data.storage.segment_slots import SegmentSlots; "
        f"slots = SegmentSlots(Path({str(tmp_path)!r}), 4, {N_SEGMENTS}); assert slots.read(1)[:1] == b'\\1'; "
        f"slots.store({{7: bytes([7]) * {SEGMENT_BYTES}}}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert slots.read(7) == content(7)
    assert held(pickle.loads(pickle.dumps(slots))) == {0, 1, 7}


def test_a_damaged_slot_is_written_again_in_place(tmp_path: Path) -> None:
    slots = SegmentSlots(tmp_path, 4, N_SEGMENTS)
    fill(slots, range(4))
    os.truncate(tmp_path / "segments", 3 * SEGMENT_BYTES + 1)
    assert len(slots.read(3)) == 1
    fill(slots, range(3, 4))
    assert slots.read(3) == content(3)
    assert held(slots) == {0, 1, 2, 3}


def test_another_number_of_slots_begins_empty(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "left-by-another-version").write_bytes(bytes(10**6))
    fill(SegmentSlots(tmp_path, 9, N_SEGMENTS), range(9))
    fewer = SegmentSlots(tmp_path, 3, N_SEGMENTS)
    assert total(tmp_path) <= 3 * SLOT_BYTES + 4 * (1 + N_SEGMENTS)
    assert held(fewer) == set()
    fill(fewer, range(9))
    assert held(SegmentSlots(tmp_path, 3, N_SEGMENTS)) == {6, 7, 8}


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't write to the cache"):
        SegmentSlots(tmp_path / "file", 3, N_SEGMENTS)

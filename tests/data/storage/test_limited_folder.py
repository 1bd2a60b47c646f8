import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptstar.data.storage.limited_folder import LEDGER_BYTES, LimitedFolder, Plan
from gptstar.errors import DataError

SIZE = 997


def item(number: int) -> dict[str, bytes]:
    return {f"shard/{number}": bytes([number]) * SIZE}


def there(folder: LimitedFolder, numbers: range) -> set[int]:
    return {number for number in numbers if folder.holds(f"shard/{number}", SIZE)}


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill(folder: LimitedFolder, numbers: range) -> None:
    for number in numbers:
        folder.store(item(number))
        time.sleep(0.01)  # file times are as coarse as the kernel's clock


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    folder = LimitedFolder(tmp_path, 5 * SIZE + LEDGER_BYTES)
    fill(folder, range(5))
    assert folder.read("shard/0", SIZE, 3, 7) == bytes(4)
    folder.store(item(5))
    assert there(folder, range(6)) == {0, 2, 3, 4, 5}
    assert total(tmp_path) == 5 * SIZE + LEDGER_BYTES


def test_the_limit_holds_even_for_more_than_it(tmp_path: Path) -> None:
    folder = LimitedFolder(tmp_path, 3 * SIZE)
    folder.store({name: content for number in range(7) for name, content in item(number).items()})
    assert len(there(folder, range(7))) == 2
    assert total(tmp_path) <= 3 * SIZE
    folder.keep("kept", bytes(2 * SIZE))
    assert there(folder, range(7)) == set()
    assert folder.kept("kept") == bytes(2 * SIZE)
    folder.store(item(0))
    assert total(tmp_path) <= 3 * SIZE


def test_what_is_planned_stays(tmp_path: Path) -> None:
    folder = LimitedFolder(tmp_path, 6 * SIZE)
    fill(folder, range(4))
    with Plan(folder) as plan:
        path = plan.add(["shard/0", "shard/2"])
        fill(folder, range(4, 11))
        assert {0, 2} <= there(folder, range(11))
        plan.drop(path)
        fill(folder, range(11, 15))
        assert there(folder, range(15)) <= set(range(8, 15))
    assert total(tmp_path) <= 6 * SIZE


def test_nothing_is_stored_where_all_is_planned(tmp_path: Path) -> None:
    folder = LimitedFolder(tmp_path, 4 * SIZE)
    fill(folder, range(3))
    with Plan(folder) as plan:
        plan.add(f"shard/{number}" for number in range(3))
        fill(folder, range(3, 6))
        assert there(folder, range(6)) == {0, 1, 2}


def test_a_plan_ends_with_its_process(tmp_path: Path) -> None:
    folder = LimitedFolder(tmp_path, 4 * SIZE)
    fill(folder, range(2))
    program = (
        "import os; from pathlib import Path; from gptstar.data.storage.limited_folder import *; "
        f"plan = Plan(LimitedFolder(Path({str(tmp_path)!r}), {4 * SIZE})).__enter__(); "
        "plan.add(['shard/0', 'shard/1']); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    assert list((tmp_path / "plans").glob("*.plan"))
    fill(folder, range(2, 7))
    assert not there(folder, range(2))
    assert not list((tmp_path / "plans").iterdir())


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    folder = LimitedFolder(tmp_path, 4 * SIZE)
    folder.store(item(0))
    (tmp_path / "items" / "shard" / "1.part").write_bytes(bytes(2 * SIZE))
    (tmp_path / "used").write_text(f"{3 * SIZE:0{LEDGER_BYTES}d}")  # entered before it was written
    fill(folder, range(2, 4))
    assert there(folder, range(4)) == {0, 2, 3}
    assert total(tmp_path) <= 4 * SIZE
    (tmp_path / "used").write_text("")
    fill(folder, range(4, 6))
    assert total(tmp_path) <= 4 * SIZE


def test_a_lower_limit_holds_at_once(tmp_path: Path) -> None:
    fill(LimitedFolder(tmp_path, 9 * SIZE), range(8))
    LimitedFolder(tmp_path, 3 * SIZE)
    assert total(tmp_path) <= 3 * SIZE


def test_a_truncated_item_is_not_there(tmp_path: Path) -> None:
    folder = LimitedFolder(tmp_path, 3 * SIZE)
    folder.store(item(1))
    os.truncate(tmp_path / "items" / "shard" / "1", SIZE - 1)
    assert folder.read("shard/1", SIZE, 0, SIZE) is None
    folder.store(item(1))
    assert folder.read("shard/1", SIZE, 0, 2) == b"\x01\x01"


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't write to the cache"):
        LimitedFolder(tmp_path / "file", 3 * SIZE)

"""Files that appear whole or not at all: a kill, a failing write and a full disk leave what was there before."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptstar.files import file_sha256, partial_path, remove, whole_file, write_json, write_text


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond a size: as on a full disk, for Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ÿ\n\nb")
    assert (tmp_path / "a.txt").read_bytes() == "ÿ\n\nb".encode()
    write_json(tmp_path / "a.json", {"b": [1, None, 2.5], "a": "ÿ"})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"b": [1, None, 2.5], "a": "ÿ"}
    write_json(tmp_path / "a.json", 3)
    assert (tmp_path / "a.json").read_text() == "3\n"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.txt"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = f"""
import time
from pathlib import Path
from gptstar.files import whole_file
with whole_file(Path({str(path)!r})) as temporary, temporary.open("w") as file:
    while True:
        file.write("new" * 1000)
        file.flush()
        time.sleep(0.001)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        growing = partial_path(path)
        until = time.monotonic() + 60
        while not (growing.exists() and growing.stat().st_size > 10_000):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert growing.stat().st_size > 10_000
    write_text(path, "new")  # what was left does no harm, and goes
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with room_for(5000), pytest.raises(OSError, match="File too large") as refused:
        write_text(path, "new" * 5000)
    assert (refused.value.errno, refused.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_disk_that_is_full_at_the_last_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with monkeypatch.context() as inside:
        inside.setattr(step, fail)
        with pytest.raises(OSError, match="No space left") as refused:
            write_text(path, "new")
    assert refused.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_is_renamed_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def record_sync(file: int) -> None:
        assert os.readlink(f"/proc/self/fd/{file}") == str(partial_path(tmp_path / "a.txt"))
        done.append("sync")
        sync(file)

    def record_replace(source: Path, target: Path) -> Path:
        done.append("replace")
        return replace(source, target)

    monkeypatch.setattr("os.fsync", record_sync)
    monkeypatch.setattr("pathlib.Path.replace", record_replace)
    write_text(tmp_path / "a.txt", "new")
    assert done == ["sync", "replace"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("none of the disk's"), OSError("it has no number")])
def test_a_block_that_fails_leaves_the_old_file_and_its_own_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(type(error)) as refused:
        write()
    assert refused.value is error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused, whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_bytes((tmp_path / "source").read_bytes())
    assert Path(refused.value.filename) == tmp_path / "source"


def test_a_value_that_json_does_not_know_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_folder_that_is_missing_is_named_by_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        write_text(tmp_path / "none/a.txt", "new")
    assert refused.value.filename == str(tmp_path / "none/a.txt")


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_a_killed_process_left_is_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / "other").write_text("other")
    match kind:
        case "file":
            partial_path(path).write_text("half")
        case "link":
            partial_path(path).symlink_to("other")
        case "folder":
            (partial_path(path) / "within").mkdir(parents=True)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert (tmp_path / "other").read_text() == "other"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "other"]


def test_a_link_is_replaced_as_a_link(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_text(tmp_path / name, name)
        with whole_file(tmp_path / "newest") as temporary:
            temporary.symlink_to(name)
    assert os.readlink(tmp_path / "newest") == "b"
    assert (tmp_path / "a").read_text() == "a"
    write_text(tmp_path / "newest", "c")  # takes the link's place, and leaves what it points to
    assert (tmp_path / "b").read_text() == "b"


def test_removing(tmp_path: Path) -> None:
    (tmp_path / "folder/within").mkdir(parents=True)
    (tmp_path / "link").symlink_to("folder")
    remove(tmp_path / "link")
    assert os.listdir(tmp_path) == ["folder"]
    remove(tmp_path / "folder")
    remove(tmp_path / "none")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18 + 7])
def test_a_hash_is_hashlibs(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content[:size]).hexdigest()


def test_the_hash_of_nothing_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert file_sha256(tmp_path / "a") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

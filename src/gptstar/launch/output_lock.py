"""The lock of a folder of runs, which one sweep or `gptstar study restore` at a time may write to."""

from pathlib import Path

from filelock import FileLock, Timeout

from gptstar.errors import ConfigError


def lock_output(folder: Path) -> FileLock:
    """Lock a folder against other sweeps until the lock is released, or this process ends; create the folder.

    Raises:
        ConfigError: another sweep uses the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".sweep.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"output={folder} is in use by another sweep: wait for it, or choose another") from error
    return lock

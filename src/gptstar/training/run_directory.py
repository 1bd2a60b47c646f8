"""The run directory: its lock, its newest checkpoint, and its record of configuration and versions."""

import contextlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from gptstar import __version__
from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.kept import LAST, link, newest_first
from gptstar.checkpoint.read import find
from gptstar.errors import CheckpointError, ConfigError, Interrupted, UnknownChoice, in_one_line
from gptstar.files import read_json, write_json, write_text
from gptstar.ranks import Ranks
from gptstar.training.record import RESUME_WORDS, Record
from gptstar.training.status import LOCK_NAME, State, Status

PACKAGES = ("torch", "lightning", "numpy", "tokenizers", "hydra-core", "omegaconf", "bitsandbytes")


HYDRAS = "multirun.yaml"
"""The file that Hydra leaves in the output of a run that it submits."""


class RunDirectory:
    """The folder of one run. One job at a time holds its lock, and that job's first rank writes in it.

    Args:
        path: the folder, created if it is missing; the first rank's path counts.

    Raises:
        ConfigError: the folder can't be written, or another run is using it.
    """

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self._ranks = ranks
        self.path = ranks.agreed(lambda: path)
        self._lock = FileLock(path / LOCK_NAME)
        self._status: Status | None = None  # None until the run has begun
        if path != self.path:  # the path may contain the time, which differs between ranks
            _remove_unused(path)
        ranks.agreed(self._hold)

    def _hold(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"output={self.path} is in use by another run: wait for it, or choose another") from error
        except OSError as error:
            raise ConfigError(f"output={self.path} can't be written ({error.strerror}): choose another") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Record how the run ended, release the lock, and remove the folder of a run that never began."""
        if not self._ranks.first:
            return
        if self._status is not None:
            if error is not None:
                state: State = "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
                self._status = Status(state, in_one_line(error))
            with contextlib.suppress(OSError):  # a full disk
                self._status.write(self.path)
        self._lock.release()
        _remove_unused(self.path)

    def finished(self, reason: str = "") -> None:
        """Record that the run has ended.

        Args:
            reason: why the run ended before its last step, if it did.
        """
        self._status = Status("finished", reason)

    def start_from(
        self, record: Record, read: Callable[[Path], Checkpoint], warn: Callable[[str], None]
    ) -> tuple[Path, Checkpoint] | None:
        """Return the checkpoint to start from, or None for a new run. Damaged checkpoints are skipped.

        Args:
            record: the configuration of what to start from.
            read: a function that reads and verifies a checkpoint on this rank.
            warn: a function that prints a warning for each skipped checkpoint.

        Raises:
            ConfigError: `resume=never`, but the folder holds a run; or it holds files that are not a run's.
            CheckpointError: all checkpoints are damaged.
        """
        paths = self._ranks.agreed(lambda: self._candidates(record))
        for number, path in enumerate(paths, start=1):
            checkpoint, problem = None, None
            try:
                checkpoint = read(path)
            except CheckpointError as error:
                problem = str(error), isinstance(error.__cause__, UnknownChoice)
            problems = [each for each in self._ranks.gathered(problem) if each]
            if checkpoint is not None and not problems:
                return path, checkpoint
            message, lacks_plugin = problems[0]
            if lacks_plugin or number == len(paths):  # without the plugin the others can't be read either
                raise self._ranks.alike(CheckpointError(message))
            warn(f"warning: {message}; trying {paths[number].name}")
        return None

    def _candidates(self, record: Record) -> list[Path]:
        holds = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")} - {HYDRAS}
        if holds and "versions.json" not in holds:
            raise ConfigError(f"output={self.path} holds files that are not a run's: choose another folder")
        if record.resume == "never" and holds:
            raise ConfigError(f"output={self.path} holds a run and resume=never: choose another output")
        own = newest_first(self.path)
        if own and not (self.path / LAST).exists():
            link(own[0], LAST)
        named = None if record.source in RESUME_WORDS else Path(record.source)
        if named is not None and (not own or named.resolve().parent == self.path.resolve()):
            return [named / LAST if (named / LAST).exists() else find(named)]
        return own

    def describe(self, config_yaml: str, data_fingerprint: str) -> None:
        """Record configuration, versions, data and command; from then on the folder counts as a run."""
        if not self._ranks.first:
            return
        try:
            began = read_json(self.path / "versions.json")["began"]
            datetime.fromisoformat(began)
        except (OSError, ValueError, LookupError, TypeError):
            began = datetime.now(UTC).isoformat(timespec="seconds")
        about = {
            "gptstar": __version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "data": data_fingerprint,
            "began": began,
            "packages": dict(_versions()),
            "command": _command(),
        }
        write_text(self.path / "config.yaml", config_yaml)
        write_json(self.path / "versions.json", about)
        Status("running").write(self.path)
        self._status = Status("stopped")


def _command() -> str:
    """Return the command as typed: `gptstar train …`, or a script."""
    typed = sys.argv[0] if sys.argv[0].startswith("gptstar ") else shlex.join(["python", sys.argv[0]])
    return " ".join([typed, *([shlex.join(sys.argv[1:])] if sys.argv[1:] else [])])


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # an optional dependency
            yield name, version(name)


def _remove_unused(path: Path) -> None:
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= {LOCK_NAME}:
        (path / LOCK_NAME).unlink(missing_ok=True)
        path.rmdir()


def _commit() -> str | None:
    """Return the checkout's commit, marked `-dirty` if files differ from it; None for an installed package."""
    commands = (
        ["ls-files", "--error-unmatch", Path(__file__).name],  # fails for a virtual environment inside another checkout
        ["describe", "--always", "--dirty", "--abbrev=12"],
    )
    output = ""
    try:
        for command in commands:
            git = ["git", "-C", str(Path(__file__).parent), *command]
            output = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return output

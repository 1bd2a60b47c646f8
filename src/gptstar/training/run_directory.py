"""The run directory: its lock, its newest checkpoint, and the configuration and versions behind it."""

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
"""What Hydra leaves in the output of a run that it submits."""


class RunDirectory:
    """The folder of one run, held by one job at a time, whose first rank writes in it.

    Args:
        path: made if it is not there; the first rank's, on all of them.

    Raises:
        ConfigError: it can't be written, or another run is writing in it.
    """

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self._ranks = ranks
        self.path = ranks.agreed(lambda: path)
        self._lock = FileLock(path / LOCK_NAME)
        self._status: Status | None = None  # nothing before it has begun
        if path != self.path:  # a time of day may be in it, and each rank has read the clock
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
        """Put on record how it ended, let another run in, and leave no trace of one that never began."""
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
            reason: why it ended before its last step.
        """
        self._status = Status("finished", reason)

    def start_from(
        self, record: Record, read: Callable[[Path], Checkpoint], warn: Callable[[str], None]
    ) -> tuple[Path, Checkpoint] | None:
        """The checkpoint to go on from, or None to begin. Where the directory's newest is damaged, the one before it.

        Args:
            record: what to start from.
            read: each rank's way to read a checkpoint, and refuse it.
            warn: gets a line for each checkpoint that is skipped.

        Raises:
            ConfigError: `never`, and the directory holds a run; or it holds what no run wrote.
            CheckpointError: none is whole.
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
            said, lacks_plugin = problems[0]
            if lacks_plugin or number == len(paths):  # without the plugin the others can't be read either
                raise self._ranks.alike(CheckpointError(said))
            warn(f"warning: {said}; trying {paths[number].name}")
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
        """Write the configuration, and the versions, data and command behind it: from here on it is a run."""
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
    """The command that was typed: `gptstar train …`, or a script."""
    typed = sys.argv[0] if sys.argv[0].startswith("gptstar ") else shlex.join(["python", sys.argv[0]])
    return " ".join([typed, *([shlex.join(sys.argv[1:])] if sys.argv[1:] else [])])


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # an extra
            yield name, version(name)


def _remove_unused(path: Path) -> None:
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= {LOCK_NAME}:
        (path / LOCK_NAME).unlink(missing_ok=True)
        path.rmdir()


def _commit() -> str | None:
    """The checkout's commit, marked if files differ from it; None for an installed package, wherever its folder is."""
    commands = (
        ["ls-files", "--error-unmatch", Path(__file__).name],  # fails for a virtual environment inside another checkout
        ["describe", "--always", "--dirty", "--abbrev=12"],
    )
    said = ""
    try:
        for command in commands:
            git = ["git", "-C", str(Path(__file__).parent), *command]
            said = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return said

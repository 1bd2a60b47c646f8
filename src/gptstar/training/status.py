"""The state of a run: `status.json` in its directory, and a lock while a process works there."""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from filelock import FileLock, Timeout

from gptstar.errors import in_one_line
from gptstar.files import read_json, read_text, write_json

FILE_NAME, LOCK_NAME = "status.json", ".lock"

State = Literal["running", "finished", "stopped", "failed"]
"""The states of a run. A `stopped` run was saved and can resume. A killed run remains `running`, but without a lock."""


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Attributes:
        state: the state, such as `running` or `finished`.
        reason: why the run failed or stopped, in one line.
        at: when it entered the state, in UTC.
    """

    state: State
    reason: str = ""
    at: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Status | None":
        """Read the status of a run directory; None if it has none, or it can't be read."""
        try:
            tree = read_json(folder / FILE_NAME)
            status = cls(str(tree["state"]), str(tree["reason"]), str(tree["at"]))  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return status if status.state in get_args(State) else None

    def write(self, folder: Path) -> None:
        """Write the status, with the present time."""
        now = Status(self.state, self.reason, datetime.now(UTC).isoformat(timespec="seconds"))
        write_json(folder / FILE_NAME, asdict(now))


def in_use(folder: Path) -> bool:
    """Whether a process is using a run directory."""
    path = folder / LOCK_NAME
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # 30 times as fast as OmegaConf
    """YAML loader that reads `1e-3` as a number, as OmegaConf does; YAML 1.1 reads it as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's configuration, as composed.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is not a configuration.
    """
    return parse_config(read_text(folder / "config.yaml"))


def parse_config(text: str) -> dict[str, Any]:
    """Parse the text of a run's `config.yaml`.

    Raises:
        ValueError: it is not a configuration.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)  # derived from a safe loader
        json.dumps(tree, default=str)  # ValueError for a recursive alias, TypeError for a date as a key
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ValueError(f"config.yaml: {in_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError("config.yaml is not a configuration")
    return {str(key): value for key, value in tree.items()}

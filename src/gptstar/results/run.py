"""One run, as its directory tells it."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from gptstar.errors import ConfigError, DataError
from gptstar.training.metrics_csv import METRICS_FILE, read_metrics
from gptstar.training.status import Status, in_use, read_config

State = Literal["running", "finished", "stopped", "failed", "killed", "refused"]
"""`stopped` had saved when it was told to; `killed` ended without a word; `refused` never began."""


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        reason: why it failed or stopped, in one line.
        config: as composed, nested.
        about: versions, data and command.
        began, at: when it was begun and when it was last heard of, in UTC.
        rows: of `metrics.csv`.
    """

    path: Path
    state: State
    reason: str
    config: dict[str, Any]
    about: dict[str, Any]
    began: datetime
    at: datetime
    rows: tuple[dict[str, float], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run directory.

        Raises:
            ConfigError: there is none, or it can't be read; names the file.
        """
        if not path.is_dir():
            raise ConfigError(f"{path} is no run directory: give the output of train.py, or a folder of such")
        status = Status.read(path)
        if not (path / "config.yaml").exists():
            return cls(path, "refused", "", {}, {}, _touched(path), _touched(path), ())
        try:
            config = read_config(path)
            about = json.loads((path / "versions.json").read_text(encoding="utf-8"))
            began = datetime.fromisoformat(about.get("began") or _touched(path / "versions.json").isoformat())
            int(config.get("batch_tokens", 0))  # as `tokens` will
        except OSError as error:
            raise ConfigError(f"{path} is damaged: {Path(error.filename or path).name}: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:  # the latter where there are other things in them
            raise ConfigError(f"{path} is damaged: {error}") from error
        try:
            rows = tuple(read_metrics(path))
        except DataError as error:
            raise ConfigError(str(error)) from error
        state: State = "killed" if status is None else status.state
        if status is not None and status.state == "running":
            state = "running" if in_use(path) else "killed"
        reason = status.reason if status else ""
        return cls(path, state, reason, config, about, began, _touched(path / METRICS_FILE, path), rows)

    @property
    def name(self) -> str:
        """The folder's; of a sweep's job what tells it from the others."""
        return self.path.name

    @property
    def step(self) -> int:
        """The last on record."""
        return int(max((row["step"] for row in self.rows), default=0))

    @property
    def tokens(self) -> int:
        """That were read in training, by the last step on record."""
        return self.step * int(self.config.get("batch_tokens", 0))

    @property
    def validation_loss(self) -> float:
        """The last, in nats a token; NaN before the first, and where the last of a finished run is no number."""
        return self._validated("validation/loss")

    @property
    def validation_bits_per_byte(self) -> float:
        """The same for those whose tokens differ."""
        return self._validated("validation/bits_per_byte")

    def _validated(self, metric: str) -> float:
        row = next((row for row in reversed(self.rows) if metric in row), {})
        is_last = self.state != "finished" or row.get("step") == self.step  # the last step is always validated
        return row.get(metric, math.nan) if is_last else math.nan

    @property
    def train_loss(self) -> float:
        """The last on record, in nats a token."""
        return next((row["train/loss"] for row in reversed(self.rows) if "train/loss" in row), math.nan)

    @cached_property
    def tokens_per_second(self) -> float:
        """Median over what was recorded; validation left out."""
        return median(speeds) if (speeds := [row["tokens_per_second"] for row in self._timed]) else math.nan

    @cached_property
    def hours(self) -> float:
        """Of training alone, from tokens and speed on record."""
        seconds, before = 0.0, 0.0
        for row in self._timed:
            seconds += max(0.0, row["tokens"] - before) / row["tokens_per_second"]
            before = row["tokens"]
        return seconds / 3600

    @property
    def _timed(self) -> list[dict[str, float]]:
        return [row for row in self.rows if row.get("tokens_per_second", 0) > 0 and "tokens" in row]

    def metric(self, name: str) -> list[tuple[int, float]]:
        """Step and value, wherever the metric was recorded."""
        return [(int(row["step"]), row[name]) for row in self.rows if name in row]


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in folders: each a run directory, or one that holds some at any depth; in order of their paths.

    Raises:
        ConfigError: a folder does not exist, or none of them holds a run.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder: give the output of train.py, or a folder of such")
        found |= {folder.resolve(): Run.read(folder) for folder in _run_folders(path)}
    if not found:
        raise ConfigError(f"no run in {', '.join(map(str, paths))}: give the output of train.py, or a folder of such")
    return list(found.values())


def labels(found: Sequence[Run]) -> list[str]:
    """A name for each run: its path, without the folders that all are in."""
    parents = [run.path.resolve().parent.parts for run in found]
    shared = 0
    while parents and all(len(each) > shared and each[shared] == parents[0][shared] for each in parents):
        shared += 1
    return [str(Path(*run.path.resolve().parts[shared:])) for run in found]


def _run_folders(path: Path) -> Iterable[Path]:
    if (path / "versions.json").exists():
        return [path]
    return sorted((file.parent for file in path.rglob("versions.json")), key=_in_order)


def _in_order(path: Path) -> list[tuple[str, int]]:
    """Numbers by size: seed-10 after seed-9."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)", f" {path}")]


def _touched(*paths: Path) -> datetime:
    path = next(path for path in paths if path.exists())
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)

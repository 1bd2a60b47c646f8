"""Runs, read from their directories."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from gptstar.checkpoint.kept import RESTORED
from gptstar.errors import ConfigError, DataError, in_one_line
from gptstar.files import read_json
from gptstar.keys import flatten
from gptstar.results.sources import Source, expand, natural_key
from gptstar.terminal import plain
from gptstar.training.metrics_csv import METRICS_FILE, read_metrics
from gptstar.training.status import FILE_NAME as STATUS_FILE
from gptstar.training.status import Status, in_use, read_config

State = Literal["running", "finished", "stopped", "failed", "killed", "refused", "damaged"]
"""The states of a run as shown to users. A `stopped` run was saved at a signal, a `killed` one left no reason, a
`refused` one never began, and a `damaged` one can't be read."""

COUNTS = ("batch_tokens", "total_steps")
NUMBERS = ("seed", "optimizer.learning_rate", "data.context_length", "model.n_vocab")
"""Settings by which runs are compared; they must be numbers."""

DESCRIPTION = "versions.json"
"""The file that marks a folder as a run directory; it holds versions, data and command."""

TUNING = "tuning"
"""The tag of runs that chose a value for others, by `hydra/sweeper=tuned`: their seed counts for nothing else."""

MOST = 2**63


@dataclass(frozen=True)
class Run:
    """A run, as read from its directory.

    Attributes:
        path: the run directory.
        state: the state of the run.
        reason: why it failed or stopped, or what is damaged, in one line.
        config: the configuration as composed, nested.
        about: versions, data and command.
        began: when the run began, in UTC.
        at: when the run last wrote, in UTC.
        rows: the rows of `metrics.csv`.
        timing: `hours` and `tokens_per_second` as measured over all rows, for a run restored from a table of a study,
            which keeps only some.
    """

    path: Path
    state: State
    reason: str
    config: dict[str, Any]
    about: dict[str, Any]
    began: datetime
    at: datetime
    rows: tuple[dict[str, float], ...]
    timing: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run directory; if that fails, the run is `damaged`, and its reason says why.

        Raises:
            ConfigError: the path is not a run directory.
        """
        if not path.is_dir():
            raise ConfigError(f"{path} is not a run directory: give the output of train.py, or a folder with some")
        if not (path / "config.yaml").exists() and not (path / DESCRIPTION).exists():
            return cls(path, "refused", "", {}, {}, _touched(path), _touched(path), ())
        try:
            config, about, began, rows = read_config(path), *_described(path), tuple(read_metrics(path))
            _check(config, rows)
        except OSError as error:
            reason = f"{Path(error.filename or path).name}: {error.strerror}"
        except (ValueError, TypeError, OverflowError, RecursionError, DataError) as error:
            reason = in_one_line(error)
        else:
            status, reason = Status.read(path), ""
            state: State = "killed"
            if status is not None and (status.state != "running" or in_use(path)):
                state, reason = status.state, status.reason
            elif status is None and (path / STATUS_FILE).exists():
                reason = f"{STATUS_FILE} is damaged"
            at, timing = _touched(path / METRICS_FILE, path), _timing(path)
            return cls(path, state, reason, config, about, began, at, rows, timing)
        return cls(path, "damaged", reason, {}, {}, _touched(path), _touched(path), ())

    @property
    def tags(self) -> tuple[str, ...]:
        """The run's tags, `tags=[…]`."""
        tags = self.config.get("tags")
        return (tags,) if isinstance(tags, str) else tuple(map(str, tags)) if isinstance(tags, list) else ()

    @property
    def is_tuning(self) -> bool:
        """Whether the run only chose a value for others."""
        return TUNING in self.tags

    @property
    def step(self) -> int:
        """The last recorded step."""
        return int(max((row["step"] for row in self.rows), default=0))

    @property
    def tokens(self) -> int:
        """The tokens of training up to the last recorded step."""
        return self.step * int(self.config.get("batch_tokens", 0))

    @property
    def validation_loss(self) -> float:
        """The last validation loss in nats per token; NaN before the first, or if a finished run ended with nan."""
        return self._validated("validation/loss")

    @property
    def validation_bits_per_byte(self) -> float:
        """The last validation loss in bits per byte, which is comparable between tokenizers."""
        return self._validated("validation/bits_per_byte")

    def _validated(self, metric: str) -> float:
        row = next((row for row in reversed(self.rows) if metric in row), {})
        is_last = self.state != "finished" or row.get("step") == self.step  # the last step is always validated
        return row.get(metric, math.nan) if is_last else math.nan

    @property
    def train_loss(self) -> float:
        """The last recorded training loss in nats per token."""
        return next((row["train/loss"] for row in reversed(self.rows) if "train/loss" in row), math.nan)

    @cached_property
    def tokens_per_second(self) -> float:
        """The median of the recorded speeds, without validation."""
        if "tokens_per_second" in self.timing:
            return self.timing["tokens_per_second"]
        return median(speeds) if (speeds := [row["tokens_per_second"] for row in self._timed]) else math.nan

    @cached_property
    def hours(self) -> float:
        """The hours of training without validation, from the recorded tokens and speeds."""
        if "hours" in self.timing:
            return self.timing["hours"]
        seconds, before = 0.0, 0.0
        for row in self._timed:
            seconds += max(0.0, row["tokens"] - before) / row["tokens_per_second"]
            before = row["tokens"]
        return seconds / 3600

    @property
    def _timed(self) -> list[dict[str, float]]:
        return [row for row in self.rows if row.get("tokens_per_second", 0) > 0 and "tokens" in row]


def _described(path: Path) -> tuple[dict[str, Any], datetime]:
    """Return the content of `versions.json`, and when the run began."""
    file = path / DESCRIPTION
    try:
        about = read_json(file)
        if not isinstance(about, dict) or not isinstance(about.get("command", ""), str):
            raise ValueError("not written by a run")
        return about, datetime.fromisoformat(about.get("began") or _touched(file).isoformat()).astimezone(UTC)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{DESCRIPTION}: {in_one_line(error)}") from error


def _timing(path: Path) -> dict[str, float]:
    """Return the timing of a restored run; empty for others, and for runs of a table that has none."""
    try:
        tree = read_json(path / RESTORED)
        return {key: float(tree[key]) for key in ("hours", "tokens_per_second") if key in tree}
    except (OSError, ValueError, TypeError):
        return {}


def _check(config: dict[str, Any], rows: Sequence[dict[str, float]]) -> None:
    """Check that the numbers are possible for a run."""
    flat = flatten(config)
    value: Any
    for key in NUMBERS:
        value = flat.get(key)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"config.yaml: {key}={value} is not a number")
    for key in COUNTS:
        value = flat.get(key)
        if type(value) not in (int, float) or not 0 <= value < MOST or value != int(value):
            raise ValueError(f"config.yaml: {key}={value} is not a count")
    for row in rows:
        if not (0 <= row["step"] < MOST and row["step"].is_integer()):
            raise ValueError(f"{METRICS_FILE}: {row['step']} is not a step")


def find_runs(sources: Iterable[Source]) -> list[Run]:
    """Read the runs in folders at any depth, in order of their paths.

    Args:
        sources: run directories, or folders that contain some.

    Raises:
        ConfigError: a folder does not exist, or none of them contains a run.
    """
    paths = expand(sources)
    if not (runs := runs_below(paths)):
        raise ConfigError(no_run_in(paths))
    return runs


def no_run_in(paths: Iterable[Path]) -> str:
    """Return the message that paths contain no run, with a fix."""
    return f"no run in {', '.join(map(str, paths))}: give the output of train.py, or a folder with some"


def runs_below(paths: Iterable[Path]) -> list[Run]:
    """Read the runs in folders as `find_runs` does, but accept that there are none, and skip files.

    Hidden folders below them are skipped: a run that is being restored is one, until it is whole.
    """
    runs: dict[Path, Run] = {}
    for path in (path for path in paths if path.is_dir()):
        folders = [path]
        if not (path / DESCRIPTION).exists():
            folders = [file.parent for file in path.rglob(DESCRIPTION) if not is_hidden(file, path)]
            folders.sort(key=natural_key)
        runs |= {folder.resolve(): Run.read(folder) for folder in folders}
    return list(runs.values())


def is_hidden(path: Path, below: Path) -> bool:
    """Whether a path lies in a hidden folder below another."""
    return any(part.startswith(".") for part in path.relative_to(below).parent.parts)


def labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """Name each run by its path, without the common parent folders."""
    if not runs:
        return {}
    paths = [run.path.resolve() for run in runs]
    shared = os.path.commonpath([path.parent for path in paths])
    by_name: dict[str, Run] = {}
    for path, run in zip(paths, runs, strict=True):
        name = plain(str(path.relative_to(shared)))
        while name in by_name:  # paths that differ in unprintable characters only
            name += "'"
        by_name[name] = run
    return by_name


def _touched(*paths: Path) -> datetime:
    path = next(path for path in paths if path.exists())
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)

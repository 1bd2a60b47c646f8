"""A sweep: what its jobs are called, a process for each on this machine, and what became of them."""

import contextlib
import logging
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from gptstar.errors import ConfigError, Refusal, TrainingError
from gptstar.launch import run_apart
from gptstar.results.run import find_runs
from gptstar.results.table import runs_table
from gptstar.training.status import is_finished


def job_name(
    task_overrides: Sequence[str], params: Mapping[str, object] | None, command_line: Sequence[str] | None = None
) -> str:
    """The folder of a job, such as `context_length-128_seed-0`; it holds no `=`, `,`, `/` or space.

    A run by itself that a scheduler is to start has no folder of its own in the output: `.`.

    Args:
        task_overrides: of this job, each with one value.
        params: what the configuration itself sweeps over: `hydra.sweeper.params`.
        command_line: of the sweep, some words with several values; this process's own unless given.
    """
    words = sys.argv[1:] if command_line is None else command_line
    parts = []
    for override in OverridesParser.create().parse_overrides(list(task_overrides)):
        if override.key_or_group in _swept(words, params):
            leaf = override.key_or_group.rpartition(".")[2]
            parts.append(f"{leaf}-{override.get_value_element_as_str()}")
    sweeps = params or not {"-m", "--multirun"}.isdisjoint(words)
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts)) or ("only" if sweeps else ".")


def _swept(command_line: Sequence[str], params: Mapping[str, object] | None) -> dict[str, Override]:
    """What has several values, by key; the command line's own word on a key counts."""
    words = [f"{key}={value}" for key, value in (params or {}).items()]
    words += [word for word in command_line if "=" in word and not word.startswith("-")]
    given = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(words)}
    return {key: override for key, override in given.items() if override.is_sweep_override()}


def register_job_names() -> None:
    """Let the configuration name a job's folder as `${job_name:${hydra.overrides.task},${hydra.sweeper.params}}`."""
    words = sys.argv[1:]  # now: a job of a cluster, which gets this function by pickle, was not started by them
    OmegaConf.register_new_resolver(
        "job_name", lambda overrides, params: job_name(overrides, params, words), replace=True
    )


def announce_submission() -> None:
    """Where the run goes to SLURM: say where to look, before the command waits for its end."""
    if "launcher=slurm" in sys.argv[1:]:
        print(
            "submitting to SLURM: scripts and logs are in .slurm in the output, squeue --me shows the jobs, and Ctrl-C "
            "leaves them to themselves",
            flush=True,
        )
        with contextlib.suppress(ImportError):
            import submitit  # first, as it sets its log up  # noqa: F401
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it complains of every cluster without accounting


class Sweep:
    """The jobs of a sweep on this machine, one after another, each in a process of its own.

    So what crashes, or runs out of memory, ends one job and not the others. What is finished is skipped, what was
    interrupted goes on, and what failed is tried again, by the same command.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._seconds: list[float] = []
        self._names: list[str] = []
        self._failed: dict[str, str] = {}

    def takes(self) -> bool:
        """Whether the job that Hydra starts now is of a sweep on this machine, whose jobs come one after another."""
        hydra_config = HydraConfig.get()
        return hydra_config.mode is RunMode.MULTIRUN and hydra_config.runtime.choices.get("hydra/launcher") == "basic"

    def run(self, script: str, composed: DictConfig) -> None:
        """Run the job, unless it is finished; what is wrong with it is told at the end of the sweep.

        Raises:
            Interrupted: a signal came; the job has saved, and no other begins.
            ConfigError: another sweep is at work in the folder, or two jobs would share one.
        """
        path = Path(composed.output)
        if self._folder is None:
            self._hold(path.parent)
        if path.name in self._names:
            raise ConfigError(f"two jobs of the sweep are called {path.name}: give each value once")
        self._names.append(path.name)
        self._console.rule(f"[b]{self._place()}: {path.name}[/b]{self._left()}", align="left")
        if is_finished(path, OmegaConf.to_yaml(composed, resolve=True)):
            self._console.print("finished already: skipped")
            return
        goes_on, began = (path / "versions.json").exists(), time.perf_counter()
        try:
            run_apart(script, composed)
            if not goes_on:  # else it took less than others will
                self._seconds.append(time.perf_counter() - began)
        except TrainingError as error:
            self._failed[path.name] = str(error)

    @contextlib.contextmanager
    def concluded(self) -> Iterator[None]:
        """Around a sweep: show its runs when it ends.

        Raises:
            TrainingError: some jobs failed; names them.
        """
        try:
            yield
        except Refusal:  # Hydra's own sweeper raises what a job was refused for
            self._show()
            raise
        self._show()
        if self._failed:
            first = next(iter(self._failed.items()))
            raise TrainingError(
                f"{len(self._failed)} of {len(self._names)} jobs failed, such as {first[0]}: {first[1]}; the same "
                f"command with output={self._folder} tries them again, and skips what is finished"
            )

    def _hold(self, folder: Path) -> None:
        self._lock = FileLock(folder / ".sweep.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"output={folder} is in use by another sweep: wait for it, or choose another") from error
        self._folder = folder

    def _place(self) -> str:
        swept = _swept(sys.argv[1:], HydraConfig.get().sweeper.get("params"))
        discrete = [override for override in swept.values() if override.is_discrete_sweep()]
        if len(discrete) < len(swept):  # a search, which decides as it goes
            return f"job {len(self._names)}"
        return f"job {len(self._names)} of {math.prod(len(list(each.sweep_string_iterator())) for each in discrete)}"

    def _left(self) -> str:
        place = re.findall(r"\d+", self._place())
        if not self._seconds or len(place) < 2:
            return ""
        seconds = (int(place[1]) - int(place[0]) + 1) * sum(self._seconds) / len(self._seconds)
        left = f"{seconds / 60:,.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
        return f", about {left} left" + (f", {len(self._failed)} failed" if self._failed else "")

    def _show(self) -> None:
        if self._folder is None:
            return
        self._console.rule()
        with contextlib.suppress(ConfigError):  # there is none
            self._console.print(runs_table(find_runs([self._folder])))
        for name, reason in self._failed.items():
            self._console.print(f"failed: {name}: {reason}", style="red", markup=False)
        self._console.print(f"next: gptstar report {self._folder}")

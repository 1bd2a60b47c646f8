"""A sweep on this machine: start a process for each job, and report how each ended."""

import contextlib
import math
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from gptstar.checkpoint.kept import restored_from
from gptstar.config import TrainConfig
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.errors import ConfigError, Interrupted, TrainingError
from gptstar.launch.devices import FORWARDED_SIGNALS, words_of
from gptstar.launch.job import Job, check_shared_gpu, share_of_machine, visible_gpus
from gptstar.launch.names import check_values_differ, swept_over, values_of
from gptstar.launch.output_lock import lock_output
from gptstar.launch.study_table import StudyTable
from gptstar.results.run import find_runs
from gptstar.results.table import runs_table
from gptstar.terminal import Terminal
from gptstar.training.restored import check_restored
from gptstar.training.settings import is_finished

SECONDS_BETWEEN_LOOKS = 0.2

KNOWN_AHEAD = ("basic", "tuned")
"""Sweepers whose number of jobs is known before the first job begins."""


@dataclass
class Going:
    """A running job: its process, run directory, place on the machine and start, and whether it is a new run."""

    job: Job
    path: Path
    place: int
    began: float
    is_new: bool


class Sweep:
    """The jobs of a sweep on this machine, `jobs_at_once` of them at a time, each in its own process.

    So a crash, or a lack of memory, ends one job and not the others. The same command skips finished jobs, resumes
    interrupted ones, and tries failed ones again.

    Attributes:
        n_jobs: the number of jobs, if a sweeper has counted them.
        table: a table of a study, which each finished run is added to.
    """

    def __init__(self) -> None:
        self.n_jobs: int | None = None
        self.table: StudyTable | None = None
        self._console = Terminal(highlight=False, soft_wrap=True)
        self._begun = False
        self._folder: Path | None = None
        self._lock: FileLock | None = None
        self._seconds: list[float] = []
        self._names: list[str] = []
        self._going: dict[str, Going] = {}
        self._failed: dict[str, str] = {}
        self._signals: list[int] = []
        self._fingerprints: dict[str, str] = {}
        self._at_once = 1

    def takes(self) -> bool:
        """Whether the job that Hydra starts now belongs to a sweep on this machine."""
        hydra_config = HydraConfig.get()
        return hydra_config.mode is RunMode.MULTIRUN and hydra_config.runtime.choices.get("hydra/launcher") == "basic"

    def run(self, composed: DictConfig) -> None:
        """Run the job, unless it is finished; an error in it is reported at the end of the sweep.

        Return as soon as another job may start.

        Raises:
            Interrupted: a signal came; the running jobs have saved, and no other begins.
            ConfigError: another sweep uses the folder, two jobs would share a folder, a search has `jobs_at_once` above
                1, or the folder has results of other settings or text, restored from a table, or the table has.
        """
        path, config_yaml = Path(composed.output), OmegaConf.to_yaml(composed, resolve=True)
        if not self._begun:
            self._begin(path.parent, composed)
        if self._signals:
            self._wait_until_at_most(0)
        self._names.append(path.name)
        self._console.rule(Text.assemble((f"{self._place()}: {path.name}", "bold"), self._left()), align="left")
        if (table := restored_from(path)) is not None:
            check_restored(path, config_yaml, self._fingerprint_of(composed))
            self._console.print(f"finished, in {table}: skipped")
            return
        if self.table is not None:
            self.table.check(path, path.parent, config_yaml, self._fingerprint_of(composed), self._swept())
        if is_finished(path, config_yaml):
            self._console.print("finished already: skipped")
            self._keep(path)
            return
        is_new = not (path / "versions.json").exists()
        if self._at_once > 1:
            if visible_gpus():
                check_shared_gpu(TrainConfig.parse(composed), self._at_once)
            free = min(set(range(self._at_once)) - {going.place for going in self._going.values()})
            job = Job(
                words_of(composed),
                log=path.with_name(f"{path.name}.txt"),
                environment=share_of_machine(free, self._at_once),
            )
        else:
            free, job = 0, Job(words_of(composed))
        self._going[path.name] = Going(job, path, free, time.perf_counter(), is_new)
        for number in self._signals:  # while it was started
            job.tell(number)
        self._wait_until_at_most(self._at_once - 1)

    def wait(self) -> None:
        """Wait until all running jobs have ended.

        Raises:
            Interrupted: a signal came; the jobs have saved.
        """
        self._wait_until_at_most(0)

    @contextlib.contextmanager
    def concluded(self) -> Iterator[None]:
        """Return a context around a sweep; at its end, wait for the jobs and print the table of runs.

        Raises:
            Interrupted: a signal came; the jobs have saved.
            TrainingError: some jobs failed; the message names the first.
        """
        try:
            yield
            self._wait_until_at_most(0)
        except BaseException:  # such as what Hydra can't compose: what is at work comes to its end
            with contextlib.suppress(Interrupted):
                self._wait_until_at_most(0)
            self._show()
            raise
        self._show()
        if self._failed:
            first = next(iter(self._failed.items()))
            raise TrainingError(
                f"{len(self._failed)} of {len(self._names)} jobs failed, such as {first[0]}: {first[1]}; the same "
                f"command with output={self._folder} tries them again, and skips what is finished"
            )

    def _begin(self, folder: Path, composed: DictConfig) -> None:
        self._begun = True
        jobs_at_once = OmegaConf.select(composed, "jobs_at_once")
        is_count = isinstance(jobs_at_once, int) and jobs_at_once > 0
        self._at_once = jobs_at_once if is_count else 1  # the job itself refuses any other value
        if self._at_once > 1 and HydraConfig.get().runtime.choices.get("hydra/sweeper") not in KNOWN_AHEAD:
            raise ConfigError(
                f"jobs_at_once={self._at_once} is for sweeps over given values, and a search needs each job's result "
                "before it chooses the next job: leave it out"
            )
        check_values_differ(self._swept())
        self.hold(folder)
        for name in FORWARDED_SIGNALS.split(","):
            signal.signal(signal.Signals[name], self._tell)

    def _tell(self, number: int, _: object) -> None:
        self._signals.append(number)
        for going in self._going.values():
            going.job.tell(number)

    def _wait_until_at_most(self, left: int) -> None:
        """Wait until at most `left` jobs run; after a signal, wait for all."""
        while len(self._going) > (0 if self._signals else left):
            ended = [name for name, going in self._going.items() if self._at_once == 1 or going.job.has_ended]
            for name in ended:
                self._conclude(name, self._going[name])
            if not ended:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if self._signals:  # even if the jobs had just come to their ends: no other is to begin
            number = self._signals[0]
            raise Interrupted(
                f"{signal.Signals(number).name}: the jobs were told to save and end; to continue, repeat the command "
                f"with output={self._folder}",
                128 + number,
            )

    def _conclude(self, name: str, going: Going) -> None:
        stopped = False
        try:
            going.job.wait()
        except TrainingError as error:
            stopped = bool(self._signals)
            if not stopped:
                self._failed[name] = str(error)
        else:
            if going.is_new:  # else it took less than others will
                self._seconds.append(time.perf_counter() - going.began)
            self._keep(going.path)
        del self._going[name]
        if self._at_once > 1:
            failed = f"failed: {self._failed[name]}" if name in self._failed else "finished"
            state = "stopped, and goes on with the same command" if stopped else failed
            self._console.print(f"{name} {state}", style="red" if name in self._failed else None)

    def hold(self, folder: Path) -> None:
        """Lock a folder against other sweeps until this process ends; further calls do nothing.

        Raises:
            ConfigError: another sweep uses the folder.
        """
        if self._folder is None:
            self._lock, self._folder = lock_output(folder), folder

    def _fingerprint_of(self, composed: DictConfig) -> str:
        """Return the fingerprint of a job's text, and prepare the text if needed; each text is prepared once."""
        text: Any = OmegaConf.to_container(composed.data, resolve=True)
        key = str({"n_vocab": composed.model.n_vocab} | text | {"context_length": None})  # another cuts the same text
        if key not in self._fingerprints:
            recipe = TrainConfig.parse(composed).recipe
            shards = ensure_prepared(recipe.data, recipe.model.n_vocab, self._console)
            self._fingerprints[key] = shards.manifest.fingerprint
        return self._fingerprints[key]

    def _keep(self, path: Path) -> None:
        """Add a finished run to the table."""
        if self.table is not None:
            self.table.save(path.parent, [path])

    def _place(self) -> str:
        if self.n_jobs is not None:
            return f"job {len(self._names)} of {self.n_jobs}"
        counts = [len(values_of(override)) for override in self._swept().values()]
        if not all(counts):  # a search, which decides as it goes
            return f"job {len(self._names)}"
        return f"job {len(self._names)} of {math.prod(counts)}"

    def _swept(self) -> dict[str, Override]:
        return swept_over(sys.argv[1:], HydraConfig.get().sweeper.get("params"))

    def _left(self) -> str:
        place = re.findall(r"\d+", self._place())
        if not self._seconds or len(place) < 2:
            return ""
        seconds = (int(place[1]) - int(place[0]) + 1) * sum(self._seconds) / len(self._seconds) / self._at_once
        left = f"{seconds / 60:,.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
        return f", about {left} left" + (f", {len(self._failed)} failed" if self._failed else "")

    def _show(self) -> None:
        if self._folder is None:
            return
        self._console.rule()
        runs = []
        with contextlib.suppress(ConfigError):  # there is none
            runs = find_runs([self._folder])
            self._console.print(runs_table(runs))
        for name, reason in self._failed.items():
            self._console.print(f"failed: {name}: {reason}", style="red")
        if runs:
            self._console.print(f"next: gptstar report {self._folder}")


SWEEP = Sweep()
"""The sweep that this process runs, if it runs one."""

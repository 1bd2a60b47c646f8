"""A Hydra sweeper that tunes before it compares: each arm first chooses a value, then trains several seeds at it.

Hydra finds its plugins in this package. The design is in `gptstar.launch.tuned`, the table in
`gptstar.launch.study_table`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus

from gptstar.launch.sweeper import FolderSweeper

if TYPE_CHECKING:
    from gptstar.launch.study_table import StudyTable
    from gptstar.launch.tuned import Arm, Design


@dataclass
class TunedConf:
    """`hydra.sweeper` with `hydra/sweeper=tuned`.

    Attributes:
        params: factors, values of `tune`, and seeds, by key, as Hydra's own sweeper takes them.
        tune: the key that each arm chooses a value of, by the validation loss at the training context.
        tuning_seed: the seed of the runs that choose, which counts for nothing else.
        ignore_corpora: corpora whose validation losses do not count in the choice.
        more_seeds: further seeds for some arms, such as `{model.positions: "alibi,rotary", seed: "3,4"}`.
        table: a file of finished runs, which is read before the first job and written after each.
    """

    _target_: str = "hydra_plugins.gptstar_tuned.TunedSweeper"
    params: dict[str, str] | None = None
    tune: str = "optimizer.learning_rate"
    tuning_seed: int = 100
    ignore_corpora: list[str] = field(default_factory=list)
    more_seeds: dict[str, Any] | None = None
    table: str | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="tuned", node=TunedConf, provider="gptstar")


class TunedSweeper(FolderSweeper):
    """Trains every arm at each value, chooses the best by validation loss, and trains the seeds that count there.

    All tuning comes first, then the arms seed by seed. Finished runs are skipped, here and in the table.
    """

    def __init__(
        self,
        params: dict[str, str] | None = None,
        tune: str = "optimizer.learning_rate",
        tuning_seed: int = 100,
        ignore_corpora: Sequence[str] = (),
        more_seeds: dict[str, Any] | None = None,
        table: str | None = None,
    ) -> None:
        super().__init__(params)
        self._tune, self._tuning_seed = tune, tuning_seed
        self._ignored, self._more_seeds, self._table_path = tuple(ignore_corpora), more_seeds, table

    def sweep(self, arguments: list[str]) -> Any:
        """Run all tuning, choose, and run the seeds; return the chosen value of each arm.

        Raises:
            ConfigError: the design is none, the table can't be read, or another sweep is at work in the folder.
        """
        from gptstar.launch.study_table import StudyTable
        from gptstar.launch.sweep import SWEEP
        from gptstar.launch.tuned import Design

        design = Design.of(self.overrides(arguments), self._tune, self._tuning_seed, self._more_seeds)
        table = StudyTable(Path(self._table_path)) if self._table_path else None
        SWEEP.hold(self._folder)
        SWEEP.n_jobs = design.n_jobs
        if table is not None:
            if restored := table.restore(self._folder):
                print(f"restored {len(restored)} finished runs from {table.path}", flush=True)
            SWEEP.table = table
        print(design.summary(), flush=True)
        tuned = self._launch(design.tuning_jobs(), 0, table)
        chosen = self._choose(design, tuned)
        seeded = self._launch(design.seed_jobs(chosen), len(tuned), table)
        for result in (*tuned, *seeded):
            _ = result.return_value  # raises what a job could not begin with
        return {" ".join(arm): value for arm, value in chosen.items()}

    def _launch(self, jobs: list[list[str]], first: int, table: "StudyTable | None") -> Sequence[JobReturn]:
        """Run a batch to its end, with as many at a time as the launcher or `jobs_at_once` has room for."""
        from gptstar.launch.sweep import SWEEP

        results = self.launcher.launch(jobs, initial_job_idx=first) if jobs else []
        SWEEP.wait()
        if table is not None:
            agreed = [each for each in results if each.status is JobStatus.COMPLETED]  # the others were refused
            table.save(self._folder, list(map(_folder_of, agreed)))
        return results

    def _choose(self, design: "Design", results: Sequence[JobReturn]) -> "dict[Arm, str]":
        """Choose a value for each arm whose tuning has finished, and say so."""
        from gptstar.launch.tuned import choose

        chosen, left = {}, iter(results)
        for arm in design.arms:
            losses = {value: _loss_of(next(left), self._ignored) for value in design.values}
            value, line = choose(design, arm, losses)
            print(line, flush=True)
            if value is not None:
                chosen[arm] = value
        return chosen


def _loss_of(result: JobReturn, ignored: Sequence[str]) -> float:
    """Return the loss by which a tuning run is chosen; NaN where it has not finished, or the job was refused."""
    from gptstar.launch.tuned import tuning_loss
    from gptstar.results.run import Run

    folder = _folder_of(result)
    loss = tuning_loss(Run.read(folder), ignored) if folder.is_dir() else math.nan
    was_refused = result.status is JobStatus.FAILED and math.isfinite(loss)  # what is there is of other settings
    return math.nan if was_refused else loss


def _folder_of(result: JobReturn) -> Path:
    assert result.hydra_cfg is not None
    return Path(result.hydra_cfg.hydra.runtime.output_dir)

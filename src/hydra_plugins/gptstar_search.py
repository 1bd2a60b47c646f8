"""A Hydra sweeper that searches: Optuna proposes values, runs find their validation loss, and a journal keeps both.

Hydra finds its plugins in this package. The field's own `hydra-optuna-sweeper` holds to Optuna 2 (of 2021).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn

from gptstar.launch.sweeper import FolderSweeper

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.log"


@dataclass
class SearchConf:
    """`hydra.sweeper` with `hydra/sweeper=search`.

    Attributes:
        n_trials: runs in all, including those of earlier starts in the same output.
        n_jobs: runs at a time, where the launcher has room for several.
        seed: of the proposals.
        params: ranges by key, as Hydra's own sweeper takes them.
    """

    _target_: str = "hydra_plugins.gptstar_search.SearchSweeper"
    n_trials: int = 20
    n_jobs: int = 1
    seed: int = 0
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="gptstar")


class SearchSweeper(FolderSweeper):
    """Minimises the validation loss over the ranges of the command line, such as `tag(log,interval(1e-4,1e-2))`.

    Finished runs are remembered in `search.log` in the output; interrupted ones go on first.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: dict[str, str] | None = None) -> None:
        super().__init__(params)
        self._n_trials, self._n_jobs, self._seed = n_trials, n_jobs, seed

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until there are enough, and return the best values.

        Raises:
            ConfigError: Optuna is not installed, or there is no range to search.
        """
        from gptstar.errors import ConfigError

        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ConfigError("hydra/sweeper=search needs the package optuna: pip install 'gptstar[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        overrides = self.overrides(arguments)
        space = {each.get_key_element(): _distribution(each) for each in overrides if each.is_sweep_override()}
        constant = [each for each in overrides if not each.is_sweep_override()]
        fixed = [f"{each.get_key_element()}={each.get_value_element_as_str()}" for each in constant]
        if not space:
            example = "optimizer.learning_rate='tag(log,interval(1e-4,1e-2))'"
            raise ConfigError(f"hydra/sweeper=search: give a range, such as {example}")
        self._folder.mkdir(parents=True, exist_ok=True)
        study = _study(self._folder / JOURNAL, self._seed)
        while (n_left := self._n_trials - _n_settled(study)) > 0:
            trials = [study.ask(space) for _ in range(min(self._n_jobs, n_left))]
            jobs = [[*fixed, *(f"{key}={trial.params[key]}" for key in space)] for trial in trials]
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, results, strict=True):
                _tell(study, trial, result)
        finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not finished:
            return None
        best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
        print(f"best of {len(finished)}: validation loss {study.best_value:.4f} with {best}")
        return study.best_params


def _study(journal: Path, seed: int) -> "optuna.Study":
    """Open the study in a journal as it was left, and put trials that did not end first in the queue."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    n_lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=seed + n_lines),  # a search that goes on must not repeat its proposals
        study_name="search",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _n_settled(study: "optuna.Study") -> int:
    """Count the trials that found a loss, and those whose run failed, but none that was only interrupted."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.name == "COMPLETE" or "refused" in trial.user_attrs for trial in trials)


def _tell(study: "optuna.Study", trial: "optuna.Trial", result: JobReturn) -> None:
    import optuna

    from gptstar.results.run import Run

    assert result.hydra_cfg is not None
    folder = Path(result.hydra_cfg.hydra.runtime.output_dir)
    run = Run.read(folder) if folder.is_dir() else None  # a run that was refused leaves none
    if run is not None and run.state == "finished":
        study.tell(trial, run.validation_loss)
    else:
        trial.set_user_attr("refused", run.reason if run else "refused")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _distribution(override: Override) -> Any:
    """Translate a range of Hydra's into a distribution of Optuna's."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        is_whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        distribution: Any = IntDistribution if is_whole else FloatDistribution
        return distribution(sweep.start, sweep.end, log="log" in sweep.tags)
    if isinstance(sweep, RangeSweep):
        return CategoricalDistribution(list(sweep.range()))
    return CategoricalDistribution([str(each) for each in override.sweep_string_iterator()])

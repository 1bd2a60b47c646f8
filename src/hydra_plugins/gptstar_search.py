"""A Hydra sweeper that searches: Optuna proposes values, runs find their validation loss, and a journal keeps both.

Hydra finds its plugins in this package. The field's own `hydra-optuna-sweeper` holds to Optuna 2 (of 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    import optuna

JOURNAL = "search.log"


@dataclass
class SearchConf:
    """`hydra.sweeper` with `hydra/sweeper=search`.

    Attributes:
        n_trials: runs in all, those of earlier starts in the same output among them.
        n_jobs: runs at a time, where the launcher has room for several.
        seed: of the proposals.
        params: as of Hydra's own sweeper: ranges by key.
    """

    _target_: str = "hydra_plugins.gptstar_search.SearchSweeper"
    n_trials: int = 20
    n_jobs: int = 1
    seed: int = 0
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="gptstar")


class SearchSweeper(Sweeper):
    """Minimises the validation loss over the ranges of the command line, such as `tag(log,interval(1e-4,1e-2))`.

    What was finished is remembered in `search.log` in the output; what was interrupted goes on first.
    """

    launcher: Launcher

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: dict[str, str] | None = None) -> None:
        self._n_trials, self._n_jobs, self._seed, self._params = n_trials, n_jobs, seed, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra asks for."""
        self._context, self._folder = hydra_context, Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run trials until there are enough.

        Returns:
            The best values.

        Raises:
            ConfigError: Optuna is not installed, or nothing is searched over.
        """
        from gptstar.errors import ConfigError

        try:
            import optuna
        except ModuleNotFoundError as error:
            raise ConfigError("hydra/sweeper=search needs the package optuna: pip install 'gptstar[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        words = [*(f"{key}={value}" for key, value in self._params.items()), *arguments]
        given = OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(words)
        alike = [each for each in given if not each.is_sweep_override()]
        fixed = [f"{each.get_key_element()}={each.get_value_element_as_str()}" for each in alike]
        space = {each.get_key_element(): _distribution(each) for each in given if each.is_sweep_override()}
        if not space:
            example = "optimizer.learning_rate='tag(log,interval(1e-4,1e-2))'"
            raise ConfigError(f"hydra/sweeper=search: give a range, such as {example}")
        self._folder.mkdir(parents=True, exist_ok=True)
        study = _study(self._folder / JOURNAL, self._seed)
        while (left := self._n_trials - _told(study)) > 0:
            trials = [study.ask(space) for _ in range(min(self._n_jobs, left))]
            jobs = [[*fixed, *(f"{key}={trial.params[key]}" for key in space)] for trial in trials]
            for trial, done in zip(trials, self.launcher.launch(jobs, initial_job_idx=trials[0].number), strict=True):
                _tell(study, trial, done)
        if _finished(study):
            best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
            print(f"best of {len(_finished(study))}: validation loss {study.best_value:.4f} with {best}")
            return study.best_params
        return None


def _study(journal: Path, seed: int) -> "optuna.Study":
    """The study in a journal, as it was left: trials that did not end are put first in the queue."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    began = _lines(journal)  # so that a search that goes on does not propose again what it did at first
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=seed + began),
        study_name="search",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _finished(study: "optuna.Study") -> list[Any]:
    import optuna

    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def _told(study: "optuna.Study") -> int:
    """Trials that count: those that found a loss, and those whose run failed, but none that was only interrupted."""
    failed = [trial for trial in study.get_trials(deepcopy=False) if "refused" in trial.user_attrs]
    return len(_finished(study)) + len(failed)


def _tell(study: "optuna.Study", trial: "optuna.Trial", done: JobReturn) -> None:
    import optuna

    from gptstar.results.run import Run

    assert done.hydra_cfg is not None
    folder = Path(done.hydra_cfg.hydra.runtime.output_dir)
    run = Run.read(folder) if folder.is_dir() else None  # one that was refused leaves none
    if run is not None and run.state == "finished":
        study.tell(trial, run.validation_loss)
    else:
        trial.set_user_attr("refused", run.reason if run else "refused")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _distribution(override: Override) -> Any:
    """Optuna's for one of Hydra's."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        if isinstance(sweep.start, int) and isinstance(sweep.end, int):
            return IntDistribution(sweep.start, sweep.end, log="log" in sweep.tags)
        return FloatDistribution(sweep.start, sweep.end, log="log" in sweep.tags)
    if isinstance(sweep, RangeSweep):
        return CategoricalDistribution(list(sweep.range()))
    assert isinstance(sweep, ChoiceSweep)
    values: Sequence[Any] = [str(each) for each in override.sweep_string_iterator()]
    return CategoricalDistribution(values)

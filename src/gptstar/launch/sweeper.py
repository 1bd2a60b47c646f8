"""What this project's Hydra sweepers share: their launcher, the output folder, and the overrides they sweep over."""

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class FolderSweeper(Sweeper, ABC):
    """A sweeper whose jobs have their folders below one output. A subclass defines `sweep`.

    Args:
        params: values by key, as Hydra's own sweeper takes them; the command line precedes them.
    """

    launcher: Launcher

    def __init__(self, params: Mapping[str, str] | None) -> None:
        self._params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare as Hydra requires."""
        self._context, self._folder = hydra_context, Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def overrides(self, arguments: Sequence[str]) -> list[Override]:
        """Parse the sweeper's parameters and the command line's words."""
        words = [*(f"{key}={value}" for key, value in self._params.items()), *arguments]
        return OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(words)

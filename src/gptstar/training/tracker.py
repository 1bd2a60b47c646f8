"""Where metrics go: the CSV always, TensorBoard or wandb by choice."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptstar.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch.loggers.logger import Logger


@dataclass(frozen=True)
class TrackerConfig:
    """Where metrics go beside `metrics.csv`.

    Attributes:
        kind: `csv` (nothing more), `tensorboard` or `wandb`.
        project, mode: of wandb; offline needs no account.
        gradient_norms: `total`, or `layers` for one a block as well.
    """

    kind: Literal["csv", "tensorboard", "wandb"] = "csv"
    project: str = "gptstar"
    mode: Literal["offline", "online"] = "offline"
    gradient_norms: Literal["total", "layers"] = "total"

    def __post_init__(self) -> None:
        if self.kind != "csv" and find_spec(self.kind) is None:
            raise ConfigError(f"tracker={self.kind} needs the package {self.kind}: pip install 'gptstar[{self.kind}]'")


def build_loggers(tracker: TrackerConfig, folder: Path, name: str, start_step: int) -> list["Logger"]:
    """The CSV, and what `tracker` asks for beside it."""
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger  # takes seconds

    from gptstar.training.metrics import MetricsCSV

    loggers: list[Logger] = [MetricsCSV(folder, start_step)]
    if tracker.kind == "tensorboard":
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    if tracker.kind == "wandb":
        run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a run that goes on stays one run
        offline = tracker.mode == "offline"
        loggers.append(
            WandbLogger(
                name=name,
                save_dir=folder,
                project=tracker.project,
                offline=offline,
                id=run_id,
                resume=None if offline else "allow",
            )
        )
    return loggers


def close_loggers(loggers: Sequence["Logger"]) -> None:
    """Finish what outlives a trainer: wandb's run would go on into the next job of a sweep."""
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()

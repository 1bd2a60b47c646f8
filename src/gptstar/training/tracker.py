"""Where metrics go: the CSV always, TensorBoard or wandb by choice."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from gptstar.data.storage.manifest import Manifest
from gptstar.errors import ConfigError
from gptstar.training.status import read_config

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


@contextlib.contextmanager
def tracked(
    tracker: TrackerConfig, folder: Path, name: str, start_step: int, console: Console
) -> Iterator[list["Logger"]]:
    """The CSV, and what `tracker` asks for beside it; finished at the end, as wandb's run would go on into another.

    Args:
        folder: the run directory.
        start_step: that the run goes on from.
    """
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger  # takes seconds

    from gptstar.training.metrics import MetricsCSV

    loggers: list[Logger] = [MetricsCSV(folder, start_step)]
    if tracker.kind == "tensorboard":
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    own_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a run that goes on stays one run
    run_id = os.environ.get("WANDB_RUN_ID", own_id)  # an agent of wandb's sweeps gives it
    offline = tracker.mode == "offline"
    if tracker.kind == "wandb":
        where: dict[str, Any] = {"project": tracker.project, "offline": offline}
        where["resume"] = None if offline else "allow"
        loggers.append(WandbLogger(name=name, save_dir=folder, id=run_id, **where))
    try:
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
    if tracker.kind == "wandb" and offline:
        parts = "".join(f" '{part}'" for part in sorted((folder / "wandb").glob(f"offline-run-*-{run_id}")))
        console.print(f"to send it to wandb, in one piece: wandb sync{parts}", highlight=False, soft_wrap=True)


def describe_run(loggers: Sequence["Logger"], folder: Path, manifest: Manifest) -> None:
    """Tell trackers what is run: the configuration, versions and code, as the run directory has them, and what text."""
    about = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    corpora = {corpus: manifest.total("train", "tokens", corpus) for corpus in manifest.sources}
    data = {"fingerprint": manifest.fingerprint, "tokenizer": manifest.tokenizer, "train_tokens": corpora}
    for logger in loggers:
        logger.log_hyperparams({**read_config(folder), "versions": about, "manifest": data})


def log_texts(loggers: Sequence["Logger"], texts: dict[str, str]) -> None:
    """Show texts by name, such as samples, where a tracker can."""
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_text("texts", columns=["name", "text"], data=[[name, text] for name, text in texts.items()])
        if isinstance(logger, TensorBoardLogger):
            for name, text in texts.items():
                logger.experiment.add_text(name, "    " + text.replace("\n", "\n    "))  # as it is, in Markdown

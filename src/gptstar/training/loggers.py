"""A run's loggers, and the description of the run that they record."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from rich.console import Console

from gptstar.data.storage.manifest import Manifest
from gptstar.files import read_json
from gptstar.training.metrics import MetricsCSV
from gptstar.training.named import build_named
from gptstar.training.record import Record
from gptstar.training.status import read_config


@contextlib.contextmanager
def tracked(record: Record, start_step: int, console: Console) -> Iterator[list[Logger]]:
    """Open the CSV logger and the configured trackers, and close them at the end.

    Args:
        record: the configuration of the trackers, and the run directory as `output`.
        start_step: the step from which the run starts or resumes.

    Raises:
        ConfigError: a logger can't be built.
    """
    folder, tracker = record.output, record.tracker
    loggers: list[Logger] = [MetricsCSV(folder, start_step)]
    if "tensorboard" in tracker.names:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    own_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a resumed run keeps its id
    run_id = os.environ.get("WANDB_RUN_ID", own_id)  # set by the agent of a wandb sweep
    offline = tracker.mode == "offline"
    if "wandb" in tracker.names:
        where: dict[str, Any] = {"project": tracker.project, "offline": offline}
        where["resume"] = None if offline else "allow"
        if offline:
            where["settings"] = {"silent": True}  # wandb's own hint would upload only the last part of a resumed run
        where |= {"group": tracker.group, "tags": list(record.tags)}
        loggers.append(WandbLogger(name=tracker.run_name or record.name, save_dir=folder, id=run_id, **where))
    loggers += [
        build_named("tracker.loggers", spec, Logger, save_dir=str(folder))  # type: ignore[type-abstract]
        for spec in tracker.loggers
    ]
    try:
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
    if "wandb" in tracker.names and offline:
        parts = "".join(f" '{part}'" for part in sorted((folder / "wandb").glob(f"offline-run-*-{run_id}")))
        console.print(f"to upload the whole run to wandb: wandb sync{parts}", highlight=False, soft_wrap=True)


def describe_run(loggers: Sequence[Logger], folder: Path, manifest: Manifest) -> None:
    """Record the configuration, the package versions and the data's manifest in every tracker."""
    about = read_json(folder / "versions.json")
    corpora = {corpus: manifest.total("train", "tokens", corpus) for corpus in manifest.sources}
    data = {"fingerprint": manifest.fingerprint, "tokenizer": manifest.tokenizer, "train_tokens": corpora}
    for logger in loggers:
        logger.log_hyperparams({**read_config(folder), "versions": about, "manifest": data})


def log_texts(loggers: Sequence[Logger], texts: dict[str, str]) -> None:
    """Log texts by name, such as samples, to each tracker that can show them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_text("texts", columns=["name", "text"], data=[[name, text] for name, text in texts.items()])
        if isinstance(logger, TensorBoardLogger):
            for name, text in texts.items():
                logger.experiment.add_text(name, "    " + text.replace("\n", "\n    "))  # verbatim in Markdown

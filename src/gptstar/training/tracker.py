"""The configuration of trackers: TensorBoard, wandb or any Lightning logger, in addition to the CSV."""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from gptstar.errors import ConfigError, in_one_line
from gptstar.training.named import check_specs


@dataclass(frozen=True)
class Tracker:
    """The trackers that receive metrics in addition to `metrics.csv`.

    Attributes:
        kind: a single tracker: `tensorboard`, `wandb`, or `csv` for no additional one.
        to: several trackers by name, such as `{wandb: true}`; `tracker=[wandb,tensorboard]` fills this in.
        project, mode: wandb's project and mode; the mode `offline` needs no account.
        group, run_name: wandb's group and name of the run; in a sweep by default the names of the sweep's folder and of
            the job's folder, which shows what varies.
        loggers: Lightning loggers, or the user's own: `{use: "package.module:Class", argument: value}`.
        gradient_norms: which gradient norms to record: `total`, or `layers` for one per block as well.
    """

    kind: Literal["csv", "tensorboard", "wandb"] = "csv"
    to: dict[Literal["tensorboard", "wandb"], bool] = field(default_factory=dict)
    project: str = "gptstar"
    mode: Literal["offline", "online"] = "offline"
    group: str | None = None
    run_name: str | None = None
    loggers: tuple[dict[str, Any], ...] = ()
    gradient_norms: Literal["total", "layers"] = "total"

    def __post_init__(self) -> None:
        check_specs("tracker.loggers", self.loggers)

    def check_here(self) -> None:
        """Check that a chosen TensorBoard is installed, and that wandb has a valid API key if it is online.

        Raises:
            ConfigError: TensorBoard is missing, or the API key.
        """
        if "tensorboard" in self.names and find_spec("tensorboard") is None:
            raise ConfigError("tracker=tensorboard needs the package tensorboard: pip install 'gptstar[tensorboard]'")
        speaks = os.environ.get("RANK", "0") == "0" and "WANDB_MODE" not in os.environ
        if "wandb" in self.names and self.mode == "online" and speaks:
            import wandb

            try:
                problem = None if wandb.login(prompt=False) else "no API key"
            except wandb.Error as error:
                problem = in_one_line(error)
            if problem:
                raise ConfigError(
                    f"tracker=wandb with tracker.mode=online: {problem}: run `wandb login`, set WANDB_API_KEY, or give "
                    "tracker.mode=offline"
                )

    @property
    def names(self) -> list[str]:
        """The names of the configured trackers."""
        return sorted({name for name, on in self.to.items() if on} | ({self.kind} - {"csv"}))

"""Where metrics go: the CSV always, TensorBoard, wandb or any logger of Lightning's by choice."""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from gptstar.errors import ConfigError, in_one_line
from gptstar.training.named import check_specs


@dataclass(frozen=True)
class Tracker:
    """Where metrics go beside `metrics.csv`.

    Attributes:
        kind: one tracker, `tensorboard` or `wandb`; `csv` stands for none.
        to: trackers by name, `{wandb: true}`: a choice of several, `tracker=[wandb,tensorboard]`, puts each here.
        project, mode: of wandb; offline needs no account.
        group, run_name: of wandb; in a sweep, unless given, the names of the sweep's folder and of the job's folder,
            which says what was varied.
        loggers: loggers of Lightning's, or of the same kind: `{use: "package.module:Class", argument: value}`.
        gradient_norms: `total`, or `layers` for one a block as well.
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
        """See that TensorBoard is installed if it is chosen, and that wandb would take what is sent to it.

        Raises:
            ConfigError: TensorBoard is missing, or wandb has no valid key.
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
        """The trackers that are configured by name."""
        return sorted({name for name, on in self.to.items() if on} | ({self.kind} - {"csv"}))

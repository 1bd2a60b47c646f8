"""Starting the processes of a run on this machine, one a device, by torchrun's own launcher."""

import logging
import os
import signal
import sys
import uuid

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gptstar.cli import SHOW_ALL
from gptstar.errors import ConfigError, Interrupted, TrainingError
from gptstar.training.hardware import HardwareConfig

EXPLAINED = 1
"""What a process exits with that has said in one line why."""


def launches(hardware: HardwareConfig) -> bool:
    """Whether this process is to start those of the run, as nobody has started them yet.

    Raises:
        ConfigError: on several nodes each has to be told of the others.
    """
    if hardware.world_size == 1 or "WORLD_SIZE" in os.environ:
        return False
    if hardware.nodes > 1:
        raise ConfigError(
            f"hardware.nodes={hardware.nodes}: start the same command on each node by torchrun --nnodes "
            f"{hardware.nodes} --nproc-per-node {hardware.n_devices} --node-rank N --master-addr FIRST_NODE train.py …"
        )
    return True


def launch(script: str, composed: DictConfig, hardware: HardwareConfig) -> None:
    """Run a script's job again in a process for each device, and wait. Where one fails, all end.

    Args:
        composed: the job's configuration.

    Raises:
        Interrupted: a signal came, which all were told of.
        TrainingError: a process died without saying why; names its rank.
        SystemExit: one refused, and has said so.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # says in fifty lines what we do in one
    if hardware.device().type == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // hardware.n_devices)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=hardware.n_devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    if not SHOW_ALL:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # set by us, and not meant for the ranks
    try:
        elastic_launch(config, sys.executable)(script, *_words(composed))
    except SignalException as error:
        number = int(error.sigval)
        raise Interrupted(
            f"{signal.Signals(number).name}: all ranks were told to save and end", 128 + number
        ) from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == EXPLAINED or failure.exitcode >= 128:
            raise SystemExit(failure.exitcode) from error
        how = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise TrainingError(
            f"rank {rank} of {hardware.world_size} died ({how}), and the others were ended; the same command with the "
            "same output goes on from the last checkpoint"
        ) from error


def _words(composed: DictConfig) -> list[str]:
    """What to type for the job that runs now, in its own folder, whether it is by itself or one of a sweep."""
    hydra_config = HydraConfig.get()
    folders = [each.path for each in hydra_config.runtime.config_sources if each.provider == "command-line"]
    chosen = [word for word in hydra_config.overrides.task if not word.lstrip("+").startswith("output=")]
    return [*(word for folder in folders for word in ("--config-dir", folder)), *chosen, f"output='{composed.output}'"]

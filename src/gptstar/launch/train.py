"""`train.py` and `gptstar train`: compose, parse, run.

What a run does, in order, is in `training/run.py`; a sweep's jobs are in `sweep.py`, a run's processes in `devices.py`.
"""

import contextlib
import logging
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gptstar.defaults import defaults_line, follow_text, register_run_name, with_neutral_defaults
from gptstar.entry import conf_folder, job, one_line_errors, take_initial_model, with_quoted_values
from gptstar.launch.names import register_job_names

SHOWING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}
"""Flags of Hydra that only print something, so PyTorch need not be imported for them."""


@hydra.main(version_base="1.3", config_path=str(conf_folder().resolve()), config_name="train")
def train(composed: DictConfig) -> None:
    """Do one run, or one job of a sweep."""
    run_job(composed)  # by its name, as a scheduler's launcher pickles this function and all that it mentions


def run_job(composed: DictConfig) -> None:
    """Hand the job to the sweep if there is one; otherwise run it."""
    from gptstar.launch.devices import describe_sweep
    from gptstar.launch.sweep import SWEEP

    with job(composed):
        words = HydraConfig.get().overrides.task
        follow_text(composed, words)
        take_initial_model(composed, words)
        hydra_config = HydraConfig.get()
        if hydra_config.mode is RunMode.MULTIRUN and hydra_config.sweep.subdir != ".":
            describe_sweep(composed)
        if SWEEP.takes():
            SWEEP.run(composed)
        else:
            run(composed)


def run(composed: DictConfig) -> None:
    """Train in this process, or in one process per device."""
    from gptstar.config import TrainConfig
    from gptstar.launch.devices import launch, launches, requeued_if_preempted

    config = TrainConfig.parse(composed).check_here()
    with requeued_if_preempted():
        if launches(config.hardware):
            launch(composed, config.hardware)
        else:
            line = defaults_line(composed, HydraConfig.get().overrides.task)
            if line is not None and os.environ.get("RANK", "0") == "0":
                print(line, flush=True)
            from gptstar.training.run import train  # Lightning takes seconds, which a launcher need not wait

            train(config.recipe, config.hardware, config.record, OmegaConf.to_yaml(composed, resolve=True))


def announce_submission() -> None:
    """If the run goes to SLURM, print where to find its logs, before the command waits for its end."""
    if "launcher=slurm" in sys.argv[1:]:
        print(
            "submitting to SLURM: scripts and logs are in .slurm in the output, squeue --me shows the jobs, and Ctrl-C "
            "leaves them to themselves",
            flush=True,
        )
        with contextlib.suppress(ImportError):
            import submitit  # first, as it sets its log up  # noqa: F401
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it complains of every cluster without accounting


def main() -> None:
    """Run the command line."""
    sys.argv[1:] = with_neutral_defaults(with_quoted_values(sys.argv[1:]))
    register_run_name()
    register_job_names()
    announce_submission()
    with one_line_errors():
        if SHOWING & set(sys.argv):
            train()
            return
        from gptstar.launch.sweep import SWEEP

        with SWEEP.concluded():
            train()

"""The Lightning Trainer of a run: devices, precision, step counters, and the user's own options."""

import logging
import warnings
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from gptstar.errors import ConfigError
from gptstar.training.checkpoints import SaveCheckpoints, is_trial
from gptstar.training.hardware import Hardware
from gptstar.training.module import LanguageModelling
from gptstar.training.options import lightning_options
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record


def build_trainer(
    recipe: Recipe,
    hardware: Hardware,
    record: Record,
    *,
    accumulate: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """Build the Trainer of a run; its counters count optimizer steps.

    Args:
        accumulate: the number of micro-batches of a step.

    Raises:
        ConfigError: the Trainer rejects the value of an option.
    """
    options = lightning_options(record.trainer)
    _quieten(profiling="profiler" in options)
    steps_to_batches = {
        key: options[key] * accumulate for key in ("overfit_batches", "limit_train_batches") if key in options
    }
    try:
        return pl.Trainer(
            accelerator=hardware.device().type,
            devices=hardware.n_devices,
            num_nodes=hardware.nodes,
            strategy=_strategy(hardware),
            plugins=[LightningEnvironment() if hardware.world_size == 1 else TorchElasticEnvironment()],
            precision="bf16-mixed" if hardware.resolved_precision() == "bf16" else "32-true",
            max_steps=recipe.total_steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            val_check_interval=record.validate_every * accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=list(loggers),
            callbacks=list(callbacks),
            default_root_dir=record.output,
            use_distributed_sampler=False,
            enable_model_summary=False,
            inference_mode=False,  # so that the validation after the last step reuses the compiled graph
            **options | steps_to_batches,
        )
    except (MisconfigurationException, AttributeError, RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(f"trainer.{key}={value}" for key, value in options.items())
        raise ConfigError(f"Lightning rejects {given}: {str(error).strip().partition(chr(10))[0]}") from error


def _strategy(hardware: Hardware) -> str | DDPStrategy | ModelParallelStrategy:
    if hardware.world_size == 1:
        return "auto"
    backend = "gloo" if hardware.device().type == "cpu" else "nccl"
    if hardware.sharded:
        return ModelParallelStrategy(
            data_parallel_size=hardware.world_size, tensor_parallel_size=1, process_group_backend=backend
        )
    return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)


def _quieten(*, profiling: bool) -> None:
    """Silence Lightning's messages that don't concern the user; its profiler needs the same log."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO if profiling else logging.WARNING)
    for message in (
        "does not have many workers",  # one process reads memory-mapped shards faster than training consumes them
        "smaller than the logging interval",  # our own callback logs
        "srun",  # we request one process per node from SLURM, which starts the others
        "LeafSpec",  # a deprecation between Lightning and torch
        "recommended to use `self.log",  # our values are already means over ranks
        "overfit_batches",  # our sampler repeats the same batch by itself
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")


def fast_forward(trainer: pl.Trainer, step: int) -> None:
    """Set the trainer's counters to a finished step.

    We restore weights, optimizer and data ourselves, so Lightning only has to count from there. Its own resume would
    need the state of its loops in the checkpoint, which depends on its version and on the number of devices.
    """
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    for counter in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, counter, batches)
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop._batches_that_stepped = step


def fit(
    trainer: pl.Trainer,
    module: LanguageModelling,
    data: pl.LightningDataModule,
    saver: SaveCheckpoints,
    *,
    trains: bool,
) -> None:
    """Train to the last step, unless a callback ended the run earlier, and validate it.

    A validation that an interrupted run missed comes first.
    """
    if trains and trainer.global_step < trainer.max_steps:
        module.validates_first = 0 < trainer.global_step != saver.validated_step and saver.validation_due(trainer)
        trainer.fit(module, datamodule=data)
    if saver.validated_step != trainer.global_step and not is_trial(trainer):
        trainer.validate(module, datamodule=data, verbose=False)

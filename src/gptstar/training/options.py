"""Options that are passed through to Lightning's Trainer."""

import inspect
from difflib import get_close_matches
from typing import Any

from gptstar.errors import ConfigError
from gptstar.training.named import check_specs

OURS = {
    "accelerator": "hardware.accelerator",
    "devices": "hardware.devices",
    "precision": "hardware.precision",
    "max_steps": "total_steps",
    "min_steps": "total_steps",
    "max_epochs": "total_steps",
    "min_epochs": "total_steps",
    "accumulate_grad_batches": "batch_tokens and hardware.micro_batch_size",
    "gradient_clip_val": "optimizer.gradient_clipping",
    "gradient_clip_algorithm": "optimizer.gradient_clipping",
    "val_check_interval": "validate_every",
    "check_val_every_n_epoch": "validate_every",
    "log_every_n_steps": "log_every",
    "logger": "tracker",
    "default_root_dir": "output",
    "plugins": "the code",
    "strategy": "hardware.strategy",
    "num_nodes": "hardware.nodes",
    "use_distributed_sampler": "the code",
    "num_sanity_val_steps": "the code",
    "enable_progress_bar": "the code",
    "enable_checkpointing": "checkpoint_every",
    "enable_model_summary": "the code",
    "barebones": "the code",
    "inference_mode": "the code",
}
"""Trainer options that can't be given, with the keys that determine them."""

TRACE = "trace"
"""The value of `trainer.profiler` that selects our own profiler (`profile.py`)."""

PROFILERS = (TRACE, "simple", "advanced", "pytorch")


def lightning_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for Lightning's Trainer, without `callbacks` and our own profiler; others build those."""
    return {key: value for key, value in options.items() if key != "callbacks" and (key, value) != ("profiler", TRACE)}


def check_trainer_options(options: dict[str, Any]) -> None:
    """Refuse options that the Trainer doesn't have, or that another key determines.

    Raises:
        ConfigError: there is such an option; the message names it and the right key.
    """
    for key in ("overfit_batches", "limit_train_batches"):
        value = options.get(key, 1)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"trainer.{key}={value} is not a whole number of 1 or more: it counts optimizer steps")
    profiler = options.get("profiler")
    if profiler is not None and profiler not in PROFILERS:
        raise ConfigError(f"trainer.profiler={profiler} is not a profiler: choose one of {', '.join(PROFILERS)}")
    check_specs("trainer.callbacks", options.get("callbacks", ()))
    if not options.keys() - {"callbacks"}:
        return
    import lightning.pytorch as pl  # it takes seconds, and commands that don't train also parse a configuration

    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    for key in options:
        if key in OURS:
            raise ConfigError(f"trainer.{key} can't be set: it follows from {OURS[key]}")
        if key not in known:
            near = get_close_matches(key, sorted(known - set(OURS)), 1)
            raise ConfigError(
                f"trainer.{key} is not an option of Lightning's Trainer"
                + (f": did you mean trainer.{near[0]}?" if near else "")
            )

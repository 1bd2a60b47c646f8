"""`gptstar prepare`, `gptstar config` and `gptstar plan`: take the overrides of train.py, but do not train."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptstar.cli.arguments import Commands, add_command
from gptstar.errors import ConfigError
from gptstar.terminal import Terminal

if TYPE_CHECKING:
    from gptstar.config import TrainConfig
    from gptstar.training.plan import Device, Memory


def add_run_commands(commands: Commands) -> None:
    """Add the three commands to the `gptstar` command."""
    for name, run, text in (
        ("prepare", _prepare, "tokenise text into shards, as train.py does before its first step"),
        ("config", _config, "check the configuration of a run, and print it with the values derived from it"),
    ):
        description = f"{text[0].upper()}{text[1:]}. Takes the overrides of train.py."
        epilog = f"example: gptstar {name} data=local data.files='text/*.jsonl.zst' model.n_vocab=4096"
        _add_overrides(add_command(commands, name, run, text, description, epilog))

    text = "estimate the memory and time of a run by arithmetic"
    description = (
        "Estimate memory per device, tokens per second and hours before starting a run. Takes the overrides of "
        "train.py. The text need not exist."
    )
    epilog = "example: gptstar plan experiment=gpt_1b3 hardware=fsdp hardware.devices=8 --device H100"
    command = add_command(commands, "plan", _plan, text, description, epilog)
    _add_overrides(command)
    add = command.add_argument
    add("--device", metavar="NAME", help="a GPU, such as H100 or A100 (default: the device of this machine)")
    add(
        "--share",
        type=float,
        metavar="X",
        help="share of the device's peak that training reaches, such as 0.4 (default: as measured or assumed)",
    )


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides, as for train.py")
    command.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with your own configuration groups")


def _print(line: str) -> None:
    """Print a line without wrapping or highlighting it."""
    Terminal().print(line, soft_wrap=True, highlight=False)


def _prepare(options: argparse.Namespace) -> None:
    from gptstar.config import TrainConfig
    from gptstar.data.inspection.inspect import shard_table
    from gptstar.data.preparation.parts import Part
    from gptstar.data.preparation.prepare import ensure_prepared
    from gptstar.entry import compose

    own = [word for word in options.overrides if word.startswith(("part=", "verify="))]
    words = dict(word.split("=", 1) for word in own)
    part = Part.parse(words["part"]) if "part" in words else None
    if (verify := words.get("verify", "false")) not in ("true", "false"):
        raise ConfigError(f"verify={verify} is not true or false: give verify=true to hash large text files completely")
    overrides = [word for word in options.overrides if word not in own]
    config = TrainConfig.parse(compose("train", overrides, options.config_dir))
    n_vocab = config.recipe.model.n_vocab
    shards = ensure_prepared(config.recipe.data, n_vocab, Terminal(), part, verify=verify == "true")
    Terminal().print(shard_table(shards.manifest))
    _print(f"shards in {shards.folder}")


def _config(options: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from gptstar.config import TrainConfig
    from gptstar.defaults import defaults_line, with_neutral_defaults
    from gptstar.entry import compose
    from gptstar.training.plan import free_device

    composed = compose("train", options.overrides, options.config_dir)
    config = TrainConfig.parse(composed).check_here()
    if config.record.trainer.get("callbacks"):
        from gptstar.training.callbacks import UserCallbacks  # imports Lightning, which takes seconds

        UserCallbacks(config.record.trainer)
    recipe = config.recipe
    batches = config.micro_batches(free_device(config.hardware))
    print(OmegaConf.to_yaml(composed, resolve=True), end="")
    if line := defaults_line(composed, with_neutral_defaults(options.overrides)):
        print(f"# {line}")
    print(
        f"# {recipe.model.n_params:,} parameters; {recipe.total_steps * recipe.batch_tokens:,} tokens in total; "
        f"a step is {recipe.sequences_per_step} sequences; a device computes {batches}; "
        f"precision here: {config.hardware.resolved_precision()}"
    )


def _plan(options: argparse.Namespace) -> None:
    from rich.table import Table

    from gptstar.config import TrainConfig
    from gptstar.entry import compose
    from gptstar.training.plan import known_device, this_device

    overrides = [*options.overrides]
    if not any(word.startswith("data.shards=") for word in overrides):
        overrides.append("data.shards=planned")
    if options.device:  # plan for a GPU that this machine need not have, so ignore what this machine supports
        overrides = [word for word in overrides if word != "hardware.compile=always"]
        overrides += ["hardware.accelerator=cpu", "hardware.attention=auto"]
    config = TrainConfig.parse(compose("train", overrides, options.config_dir))
    if not options.device:
        config.hardware.check_here()
    config.check_devices()
    device = known_device(options.device) if options.device else this_device(config.hardware)
    if options.share is not None:
        if not 0 < options.share <= 1:
            raise ConfigError(f"--share {options.share:g} is not in (0, 1]: give a share of the peak, such as 0.4")
        device = replace(device, share=options.share, source="as given")

    needed = config.memory(device)
    table = Table("per device", "GB", box=None)
    table.columns[1].justify = "right"
    for name, size in needed.parts().items():
        assumed = " (assumed)" if device.is_gpu and name == "program" else ""
        table.add_row(name + assumed, f"{size / 1e9:,.2f}")
    table.add_section()
    table.add_row("total", f"{needed.total / 1e9:,.2f}")
    table.add_row(device.name, f"{device.memory / 1e9:,.2f}")
    Terminal().print(table)
    fits = needed.total <= device.memory
    _print("fits" if fits else f"does not fit: {_fix(config, device)}")
    for line in _facts(config, device, needed):
        _print(line)


def _facts(config: "TrainConfig", device: "Device", needed: "Memory") -> Iterator[str]:
    """Describe how a step is split, how long the run takes, and the size of its checkpoints."""
    from gptstar.training.plan import step_seconds

    recipe, hardware, batches = config.recipe, config.hardware, config.micro_batches(device)
    devices = hardware.world_size
    guessed = " (hardware.devices=auto: give the number of devices)" if hardware.devices == "auto" else ""
    yield f"{recipe.model.n_params:,} parameters on {devices} device{'s' * (devices > 1)}{guessed}"
    auto = " (hardware.micro_batch_size=auto)" if hardware.micro_batch_size == "auto" else ""
    yield f"micro-batches of {batches.size} x {recipe.data.context_length} tokens, {batches.accumulate} per step{auto}"
    seconds = step_seconds(
        recipe.model,
        context_length=recipe.data.context_length,
        batch_tokens=recipe.batch_tokens,
        device=device,
        devices=devices,
        activation_checkpointing=hardware.activation_checkpointing,
    )
    hours = recipe.total_steps * seconds / 3600
    days = f" ({hours / 24:,.1f} days)" if hours > 24 else ""
    yield f"{recipe.batch_tokens / seconds:,.0f} tokens/s at {device.share:.0%} of the peak ({device.source}), so"
    yield f"{recipe.total_steps:,} steps of {recipe.batch_tokens:,} tokens take {hours:,.1f} hours{days}"
    size = (needed.parameters + needed.optimizer) * (devices if hardware.sharded else 1)
    yield f"a checkpoint takes {size / 1e9:,.2f} GB; the newest {config.record.checkpoint_keep} and the best are kept"


def _fix(config: "TrainConfig", device: "Device") -> str:
    """Return the smallest change that makes a run fit."""
    hardware = config.hardware
    size = config.micro_batches(device).size
    smaller = [{"micro_batch_size": size // 2**halved} for halved in range(1, size.bit_length())]
    again: list[dict[str, Any]] = [{"activation_checkpointing": True, **each} for each in ({}, *smaller)]
    parts: list[dict[str, Any]] = [{"strategy": "fsdp", **each} for each in ({}, *smaller, *again)]
    for change in [*smaller, *again, *(parts if hardware.world_size > 1 else [])]:
        try:
            changed = replace(config, hardware=replace(hardware, **change))
        except ConfigError:  # such as FSDP with an optimizer that can't be sharded
            continue
        if changed.memory(device).total <= device.memory:
            return "give " + " ".join(f"hardware.{key}={str(value).lower()}" for key, value in change.items())
    whole = " and optimizer=adamw" if not config.recipe.optimizer.is_shardable else ""
    return f"use more devices with hardware=fsdp{whole}, or a smaller model"

"""`gptstar prepare`, `gptstar config` and `gptstar plan`: what takes the overrides of train.py without training."""

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
    """Add them to the `gptstar` command."""
    for name, run, text in (
        ("prepare", _prepare, "tokenise text into shards, as train.py would before its first step"),
        ("config", _config, "print the configuration of a run, checked, and what follows from it"),
    ):
        description = f"{text[0].upper()}{text[1:]}. Takes the overrides of train.py."
        epilog = f"example: gptstar {name} data=local data.files='text/*.jsonl.zst' model.n_vocab=4096"
        _add_overrides(add_command(commands, name, run, text, description, epilog))

    text = "say what a run needs and how long it takes, by arithmetic"
    description = (
        "Memory of each device, tokens a second and hours of a run, before anything is started. Takes the overrides of "
        "train.py; the text need not be there."
    )
    epilog = "example: gptstar plan experiment=gpt_1b3 hardware=fsdp hardware.devices=8 --device H100"
    command = add_command(commands, "plan", _plan, text, description, epilog)
    _add_overrides(command)
    add = command.add_argument
    add("--device", metavar="NAME", help="a GPU, such as H100 or A100 (default: what this machine has)")
    add("--share", type=float, metavar="X", help="share of the peak that training reaches (default: as measured)")


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    command.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with groups of your own")


def _print(line: str) -> None:
    """Print a line as it is: neither wrapped nor highlighted."""
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
        raise ConfigError(f"verify={verify} is neither true, to hash large files of text whole, nor false")
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
        f"# {recipe.model.n_params:,} parameters; {recipe.total_steps * recipe.batch_tokens:,} tokens in all; "
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
    if options.device:  # a GPU that need not be here; what this machine can compute does not count
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
    table = Table("of each device", "GB", box=None)
    table.columns[1].justify = "right"
    for name, size in needed.parts().items():
        assumed = " (assumed)" if device.is_gpu and name == "program" else ""
        table.add_row(name + assumed, f"{size / 1e9:,.2f}")
    table.add_section()
    table.add_row("all", f"{needed.total / 1e9:,.2f}")
    table.add_row(device.name, f"{device.memory / 1e9:,.2f}")
    Terminal().print(table)
    fits = needed.total <= device.memory
    _print("fits" if fits else f"does not fit: {_cure(config, device)}")
    for line in _facts(config, device, needed):
        _print(line)


def _facts(config: "TrainConfig", device: "Device", needed: "Memory") -> Iterator[str]:
    """Say how a step is split, how long the run takes, and what it leaves."""
    from gptstar.training.plan import step_seconds

    recipe, hardware, batches = config.recipe, config.hardware, config.micro_batches(device)
    devices = hardware.world_size
    guessed = " (hardware.devices=auto: give how many there are)" if hardware.devices == "auto" else ""
    yield f"{recipe.model.n_params:,} parameters on {devices} device{'s' * (devices > 1)}{guessed}"
    auto = " (hardware.micro_batch_size=auto)" if hardware.micro_batch_size == "auto" else ""
    yield f"micro-batches of {batches.size} x {recipe.data.context_length} tokens, {batches.accumulate} a step{auto}"
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
    yield f"a checkpoint has {size / 1e9:,.2f} GB; {config.record.checkpoint_keep} and the best are kept"


def _cure(config: "TrainConfig", device: "Device") -> str:
    """Return the mildest change that makes a run fit."""
    hardware = config.hardware
    size = config.micro_batches(device).size
    smaller = [{"micro_batch_size": size // 2**halved} for halved in range(1, size.bit_length())]
    again: list[dict[str, Any]] = [{"activation_checkpointing": True, **each} for each in ({}, *smaller)]
    parts: list[dict[str, Any]] = [{"strategy": "fsdp", **each} for each in ({}, *smaller, *again)]
    for change in [*smaller, *again, *(parts if hardware.world_size > 1 else [])]:
        try:
            changed = replace(config, hardware=replace(hardware, **change))
        except ConfigError:  # such as parts of what can't be stepped in parts
            continue
        if changed.memory(device).total <= device.memory:
            return "give " + " ".join(f"hardware.{key}={str(value).lower()}" for key, value in change.items())
    whole = " and optimizer=adamw" if not config.recipe.optimizer.is_shardable else ""
    return f"give more devices with hardware=fsdp{whole}, or a smaller model"

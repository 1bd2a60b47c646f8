"""The configuration of the machine: devices, precision, and how to compute."""

import os
import shutil
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from gptstar.errors import ConfigError
from gptstar.fields import Count, Role, Shown, check_ranges
from gptstar.model.kernels.choice import AttentionForm

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
}
"""Dense bfloat16 rates in operations per second from NVIDIA's data sheets, by a part of the device's name."""


def data_sheet_name(name: str) -> str | None:
    """Return a GPU's key in `PEAK_BF16_FLOPS`, given its full name; None if it has none."""
    return next((part for part in PEAK_BF16_FLOPS if part in name), None)


Precision = Literal["float32", "bf16", "bf16_weights"]


@dataclass(frozen=True)
class Hardware:
    """The machine that a run uses: devices, precision, and how to compute.

    Attributes:
        accelerator: `cpu`, `gpu` (a CUDA device in PyTorch's terms), or `auto`, which uses a GPU if PyTorch sees one.
            `mps`, a Mac's GPU, is refused.
        precision: `float32`; `bf16`: autocast over float32 weights; `bf16_weights`: bfloat16 weights with a float32
            master copy, which the optimizer updates and checkpoints hold; `auto`: bf16 if the device is fast at it.
        micro_batch_size: the most sequences that a device computes at once; it changes speed and memory, and results by
            rounding only. `auto` fills a GPU within its memory; on CPUs it is 8, or 64 in each of several processes.
        attention: the implementation of attention; `auto` chooses the fastest exact one.
        logits: whether a GPU holds the logits of a micro-batch `whole`, or computes them twice in `pieces`, which needs
            less memory; `auto` prefers whole logits if they fit.
        activation_checkpointing: keep only the input of each block for the backward pass, and compute the block again:
            a third more work for a fraction of the memory.
        compile: whether to `torch.compile` the model; `auto` compiles on a GPU only, as it does not pay on CPUs
            (docs/speed.md).
        devices: the number of devices of each node, with one process each; `auto` means all GPUs, or one CPU process.
        nodes: the number of machines.
        strategy: how several devices share the work. With `ddp` each holds the whole model; with `fsdp` (FSDP2) each
            holds a shard of parameters, gradients and optimizer state, and gathers a block's parameters when needed.
    """

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    precision: Annotated[Literal["auto", "float32", "bf16", "bf16_weights"], Role.RESULT, Shown.ALWAYS] = "auto"
    micro_batch_size: Count | Literal["auto"] = "auto"
    attention: AttentionForm = "auto"
    logits: Literal["auto", "whole", "pieces"] = "auto"
    activation_checkpointing: bool = False
    compile: Literal["auto", "always", "never"] = "auto"
    devices: Count | Literal["auto"] = 1
    nodes: Count = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        check_ranges(self, "hardware.")
        if self.accelerator == "mps":
            raise ConfigError(
                "hardware.accelerator=mps: training on a Mac's GPU has not been tried: use hardware.accelerator=cpu"
            )

    def check_here(self) -> None:
        """Check that this machine has the devices and the compiler that the configuration needs.

        Raises:
            ConfigError: one is missing or can't do what is configured; the message names the key and a fix.
        """
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ConfigError(
                "hardware.accelerator=gpu but PyTorch sees no GPU here: use hardware=cpu, or a CUDA build"
            )
        if self.device().type == "cuda" and self.n_devices > torch.cuda.device_count():
            raise ConfigError(
                f"hardware.devices={self.devices} but PyTorch sees {torch.cuda.device_count()} GPUs here: give at most "
                "that many"
            )
        if self.world_size > 1 and self.precision == "bf16_weights" and self.strategy == "ddp":
            raise ConfigError(
                "hardware.precision=bf16_weights does not work with ddp, which can't see the bfloat16 copy: use "
                "hardware=fsdp, or hardware.precision=bf16"
            )
        if self.attention == "flex" and self.device().type == "cpu":
            raise ConfigError(
                "hardware.attention=flex but PyTorch's FlexAttention can't train on a CPU: use hardware.attention=auto"
            )
        if self.attention == "flex" and self.resolved_precision() == "float32":
            raise ConfigError(
                "hardware.attention=flex rounds float32 to TF32, an error of 1e-3: use hardware.attention=auto, which "
                "is exact in float32, or hardware.precision=bf16"
            )
        if self.attention == "flex" and not self.compiles():
            raise ConfigError(
                "hardware.attention=flex needs a compiled model, but hardware.compile=never: use "
                "hardware.attention=auto"
            )
        if self.attention == "products" and self.compiles():
            raise ConfigError(
                "hardware.attention=products works only on a CPU without compilation: use hardware.attention=auto, or "
                "hardware.compile=never"
            )
        compiler = os.environ.get("CXX", "g++")
        if self.compiles() and not shutil.which(compiler):
            how = f"CXX={compiler} is not a program: name one, or unset it" if "CXX" in os.environ else "install g++"
            raise ConfigError(f"hardware.compile={self.compile} needs a C++ compiler: {how}")

    def device(self) -> torch.device:
        """Return the device of a single process."""
        gpu = self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if gpu else "cpu")

    def explain_device(self) -> str | None:
        """Explain which device `auto` chose, and why; None if the configuration names one."""
        if self.accelerator != "auto":
            return None
        if self.device().type == "cuda":
            return (
                f"training on {torch.cuda.get_device_name()}: hardware.accelerator=auto uses a GPU if PyTorch sees one"
            )
        if torch.backends.mps.is_available():
            reason = "training on a Mac's GPU (mps) has not been tried"
        elif torch.version.cuda is None and torch.version.hip is None:
            reason = f"PyTorch {torch.__version__} is a build without GPU support"
        else:
            reason = f"PyTorch {torch.__version__} sees no GPU"
        return f"training on the CPU: hardware.accelerator=auto, and {reason}"

    @property
    def n_devices(self) -> int:
        """The number of devices of this node, with `auto` resolved."""
        if self.devices != "auto":
            return self.devices
        return max(1, torch.cuda.device_count()) if self.device().type == "cuda" else 1

    @property
    def world_size(self) -> int:
        """The number of processes of the whole run."""
        return self.n_devices * self.nodes

    @property
    def sharded(self) -> bool:
        """Whether each device holds only a shard of the model."""
        return self.strategy == "fsdp" and self.world_size > 1

    def check_world(self, world_size: int) -> None:
        """Check that there is one process per device.

        Raises:
            ConfigError: there are more or fewer; the message says how to start them.
        """
        if world_size == 1 < self.world_size:
            raise ConfigError(
                f"hardware names {self.world_size} devices, each of which needs a process: start them with train.py, "
                "or with torchrun on several nodes"
            )
        if world_size != self.world_size:
            raise ConfigError(
                f"WORLD_SIZE={world_size} in the environment, but hardware names {self.n_devices} devices on "
                f"{self.nodes} nodes: correct hardware.devices and hardware.nodes, or unset WORLD_SIZE, RANK and "
                "LOCAL_RANK if no launcher started this process"
            )

    def compiles(self) -> bool:
        """Whether the model is compiled on this machine, with `auto` resolved."""
        return self.compile == "always" or (self.compile == "auto" and self.device().type == "cuda")

    def resolved_precision(self) -> Precision:
        """Return the precision on this machine, with `auto` resolved."""
        if self.precision != "auto":
            return self.precision
        if self.device().type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if fast else "float32"

    def peak_flops(self) -> float | None:
        """Return the device's bfloat16 rate by its data sheet; None for CPUs, for float32, and if it is unknown."""
        if self.device().type == "cpu" or self.resolved_precision() == "float32":
            return None
        known = data_sheet_name(torch.cuda.get_device_name())
        return PEAK_BF16_FLOPS[known] if known else None

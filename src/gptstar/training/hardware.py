"""Where a run computes, and how."""

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
"""Dense bfloat16 tensor-core rates from NVIDIA's data sheets, by a part of the device's name."""


def data_sheet_name(name: str) -> str | None:
    """The name in `PEAK_BF16_FLOPS` of a GPU, given its full name; None if it is not there."""
    return next((part for part in PEAK_BF16_FLOPS if part in name), None)


Precision = Literal["float32", "bf16", "bf16_weights"]


@dataclass(frozen=True)
class Hardware:
    """Where a run computes, and how.

    Attributes:
        accelerator: `cpu`; `gpu`, one that PyTorch calls CUDA; `auto` takes a GPU if PyTorch sees one; `mps`, a Mac's
            GPU, is refused.
        precision: `float32`; `bf16`: autocast over float32 weights; `bf16_weights`: bfloat16 weights beside a float32
            master, which the optimizer trains and checkpoints hold; `auto`: bf16 where the device is fast at it.
        micro_batch_size: sequences a device computes at once, at most; it has no effect on what the result means.
            `auto` takes what fits into a GPU and fills it, and 8 on a CPU.
        attention: how attention is computed; `auto` takes the fastest that is exact.
        logits: of a micro-batch on a GPU: `whole`, or in `pieces`, which are computed twice and take less memory;
            `auto` takes whole where they fit.
        activation_checkpointing: keep only what goes into each block for the backward pass, and compute it again: a
            third more work for a fraction of the memory.
        compile: `torch.compile` the model; `auto` does on a GPU, on CPUs it does not pay (docs/speed.md).
        devices: of each node, with a process each; `auto` takes all GPUs, and on a CPU is one process.
        nodes: machines.
        strategy: of several devices: `ddp` has the whole model on each; `fsdp` (FSDP2) has parameters, gradients and
            optimizer state in parts, and gathers the parameters of a block when it computes.
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
        """See that this machine has the devices and the compiler, and that they can do what is asked for.

        Raises:
            ConfigError: it has not, or they can't; names the key and what to give instead.
        """
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ConfigError(
                "hardware.accelerator=gpu but PyTorch sees no GPU here: use hardware=cpu, or a CUDA build"
            )
        if self.device().type == "cuda" and self.n_devices > torch.cuda.device_count():
            raise ConfigError(
                f"hardware.devices={self.devices} but PyTorch sees {torch.cuda.device_count()} GPUs here: give fewer"
            )
        if self.world_size > 1 and self.precision == "bf16_weights" and self.strategy == "ddp":
            raise ConfigError(
                "hardware.precision=bf16_weights computes with a copy that ddp does not see: use hardware=fsdp, or bf16"
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
                "hardware.attention=flex is a part of a compiled model, and hardware.compile=never: use "
                "hardware.attention=auto"
            )
        if self.attention == "products" and self.compiles():
            raise ConfigError(
                "hardware.attention=products is written for a CPU that runs without a compiler: use "
                "hardware.attention=auto, or hardware.compile=never"
            )
        compiler = os.environ.get("CXX", "g++")
        if self.compiles() and not shutil.which(compiler):
            how = f"CXX={compiler} is not a program: name one, or unset it" if "CXX" in os.environ else "install g++"
            raise ConfigError(f"hardware.compile={self.compile} needs a C++ compiler: {how}")

    def device(self) -> torch.device:
        """Where a single process computes."""
        gpu = self.accelerator == "gpu" or (self.accelerator == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if gpu else "cpu")

    def explain_device(self) -> str | None:
        """Say which device `auto` took, and why; None if the configuration names one."""
        if self.accelerator != "auto":
            return None
        if self.device().type == "cuda":
            return (
                f"training on {torch.cuda.get_device_name()}: hardware.accelerator=auto takes a GPU if PyTorch sees one"
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
        """`devices` made definite for the machine this runs on."""
        if self.devices != "auto":
            return self.devices
        return max(1, torch.cuda.device_count()) if self.device().type == "cuda" else 1

    @property
    def world_size(self) -> int:
        """Processes of the whole run."""
        return self.n_devices * self.nodes

    @property
    def sharded(self) -> bool:
        """Whether each device has a part of the model only."""
        return self.strategy == "fsdp" and self.world_size > 1

    def check_world(self, world_size: int) -> None:
        """Refuse to run in another number of processes than these devices need.

        Raises:
            ConfigError: says how to start them.
        """
        if world_size == 1 < self.world_size:
            raise ConfigError(
                f"hardware asks for {self.world_size} devices, each of which needs a process: start them by train.py, "
                "or several nodes by torchrun"
            )
        if world_size != self.world_size:
            raise ConfigError(
                f"WORLD_SIZE={world_size} in the environment, and hardware asks for {self.n_devices} devices on "
                f"{self.nodes} nodes: give hardware.devices and hardware.nodes as they are, or unset WORLD_SIZE, RANK "
                "and LOCAL_RANK if no launcher started this process"
            )

    def compiles(self) -> bool:
        """`compile` made definite for the machine this runs on."""
        return self.compile == "always" or (self.compile == "auto" and self.device().type == "cuda")

    def resolved_precision(self) -> Precision:
        """`auto` made definite for the machine this runs on."""
        if self.precision != "auto":
            return self.precision
        if self.device().type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if fast else "float32"

    def peak_flops(self) -> float | None:
        """The device's bfloat16 rate by its data sheet, or None where we have none, as for CPUs and float32."""
        if self.device().type == "cpu" or self.resolved_precision() == "float32":
            return None
        known = data_sheet_name(torch.cuda.get_device_name())
        return PEAK_BF16_FLOPS[known] if known else None

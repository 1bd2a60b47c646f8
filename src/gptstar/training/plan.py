"""What a run needs, by arithmetic: memory of each device, and time."""

import os
import time
from dataclasses import dataclass, fields

import torch

from gptstar.errors import ConfigError
from gptstar.model import GPTConfig
from gptstar.model.kernels.products import KEPT_UP_TO
from gptstar.model.loss import CHUNK_LOGITS
from gptstar.training.hardware import PEAK_BF16_FLOPS, HardwareConfig, Precision
from gptstar.training.optimizer import Algorithm

CPU_SHARE, GPU_SHARE = 0.7, 0.4
CPU_PROGRAM, GPU_PROGRAM = 600_000_000, 1_500_000_000
"""Of a GPU both are guesses: docs/speed.md and docs/scaling.md say what was measured."""

QUANTISED_BYTES = 2 + 8 / 256
"""Of a parameter's two moments in 8 bits: bitsandbytes keeps a float32 scale for each 256 of either."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a device holds at the height of a training step.

    Attributes:
        parameters, gradients, optimizer: in float32, 16 bytes a parameter in all, 4 less in Muon's matrices, 6 less
            with moments in 8 bits; with FSDP this rank's part.
        casts: parameters in bfloat16.
        gathered: with FSDP, whole parameters of the embedding and of two blocks, and the gradients of one.
        activations: what the backward pass reads.
        logits: of as many tokens as are made at once, with their gradient by what the head reads.
        saving: a copy of what a checkpoint holds, while it is written; of a GPU's run it is in the machine's memory.
        program: Python, PyTorch and its libraries.
    """

    parameters: int
    gradients: int
    optimizer: int
    casts: int
    gathered: int
    activations: int
    logits: int
    saving: int
    program: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """By name; those that are nothing are left out."""
        return {each.name: size for each in fields(self) if (size := getattr(self, each.name))}


def memory(
    model: GPTConfig,
    *,
    context_length: int,
    micro_batch_size: int,
    precision: Precision,
    activation_checkpointing: bool,
    shards: int,
    on_gpu: bool,
    algorithm: Algorithm = "adamw",
) -> Memory:
    """What a device holds.

    Args:
        shards: the ranks that share parameters, gradients and optimizer state; 1 without FSDP.
        on_gpu: no weights of attention are kept.
        algorithm: of the optimizer.
    """
    width = 4 if precision == "float32" else 2
    D, F, A = model.d_model, model.mlp_width, model.n_heads * model.head_width
    embedding = model.n_vocab * D
    of_block = (model.n_params - embedding) // model.n_layers
    matrices = model.n_layers * (4 * A * D + 2 * F * D)
    tokens = micro_batch_size * context_length

    scores = 0 if on_gpu or context_length > KEPT_UP_TO else model.n_heads * context_length
    # What autograd keeps of a token in a block: the residual stream, the norm as each branch reads it, queries, keys
    # and values, the heads' outputs (a kernel keeps its own, the projection a copy), the MLP before and after its GELU.
    norms = 1 if model.residual == "parallel" else 2
    normed = norms * D * width if precision == "float32" else 2 * D * width
    outputs = 2 if on_gpu else 1
    kept = norms * D * 4 + normed + width * ((3 + outputs) * A + 2 * F + scores)
    activations = tokens * (4 * D * model.n_layers + kept if activation_checkpointing else kept * model.n_layers)
    activations += tokens * 8 * D  # the last norm, and what it reads

    saved = {"adamw": 0, "muon": 4 * matrices, "adamw_8bit": int((8 - QUANTISED_BYTES) * (embedding + matrices))}
    moments = 8 * model.n_params - saved[algorithm]

    casts = gathered = 0
    if shards > 1:
        gathered = 4 * (embedding + of_block)  # gradients, before they are shared out
        gathered += (2 if precision == "bf16_weights" else 4) * (embedding + 2 * of_block)  # one block ahead
    if precision == "bf16" or (precision == "bf16_weights" and shards == 1):
        casts = 2 * (embedding + of_block if shards > 1 else model.n_params)
    return Memory(
        parameters=4 * model.n_params // shards,
        gradients=4 * model.n_params // shards,
        optimizer=moments // shards,
        casts=casts,
        gathered=gathered,
        activations=activations,
        logits=width * min(tokens * model.n_vocab, CHUNK_LOGITS) + 4 * tokens * D,
        saving=0 if on_gpu else (4 * model.n_params + moments) // shards,
        program=GPU_PROGRAM if on_gpu else CPU_PROGRAM,
    )


@dataclass(frozen=True)
class Device:
    """What a device has, by its data sheet or as measured.

    Attributes:
        memory: bytes.
        peak_flops: in bfloat16.
        is_gpu: or a CPU.
        share: of that, what training reaches: of a CPU as measured (docs/speed.md), of a GPU a guess.
    """

    name: str
    memory: int
    peak_flops: float
    share: float
    is_gpu: bool


GPU_MEMORY = {"B200": 180, "H200": 141, "H100": 80, "H100 PCIe": 80, "A100": 80, "L40S": 48, "4090": 24, "3090": 24}
"""GB, by the names of `PEAK_BF16_FLOPS`."""


def known_device(name: str) -> Device:
    """A GPU by a part of its name.

    Raises:
        ConfigError: we have no data sheet of it.
    """
    if name not in GPU_MEMORY:
        raise ConfigError(f"--device {name} is none of {', '.join(GPU_MEMORY)}")
    return Device(name, GPU_MEMORY[name] * 10**9, PEAK_BF16_FLOPS[name], GPU_SHARE, is_gpu=True)


def this_device(hardware: HardwareConfig) -> Device:
    """What this machine has for each process; a CPU's rate is measured, in a second."""
    if hardware.device().type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        peak = hardware.peak_flops() or _measured_flops(torch.device("cuda"), torch.bfloat16)
        return Device(properties.name, properties.total_memory, peak, GPU_SHARE, is_gpu=True)
    dtype = torch.float32 if hardware.resolved_precision() == "float32" else torch.bfloat16
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    flops = _measured_flops(torch.device("cpu"), dtype)  # all cores, which the processes share
    return Device(
        f"a process of this CPU ({flops / 1e9:,.0f} GFLOP/s in all)",
        total // hardware.n_devices,
        flops / hardware.n_devices,
        CPU_SHARE,
        is_gpu=False,
    )


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Of the product of two square matrices, which all cores share."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    ends = time.perf_counter() + 1.0
    while time.perf_counter() < ends:
        began = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def step_seconds(
    model: GPTConfig,
    *,
    context_length: int,
    batch_tokens: int,
    device: Device,
    devices: int,
    activation_checkpointing: bool,
) -> float:
    """How long a step takes devices that reach their usual share of their peak and wait for nothing else."""
    again = 4 / 3 if activation_checkpointing else 1.0
    return again * model.training_flops(context_length) * batch_tokens / (device.peak_flops * device.share * devices)

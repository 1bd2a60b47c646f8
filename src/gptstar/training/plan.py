"""What a run needs, by arithmetic: memory of each device, and time."""

import time
from dataclasses import dataclass, fields
from typing import Self

import torch

from gptstar.errors import ConfigError
from gptstar.inference.memory import machine_bytes
from gptstar.model import GPTConfig
from gptstar.model.blocks import BLOCKS
from gptstar.model.kernels.products import KEPT_UP_TO
from gptstar.model.loss import LOGITS_AT_ONCE, aligned_rows
from gptstar.training.averaging import Averaging
from gptstar.training.averaging.none import NO_AVERAGE
from gptstar.training.hardware import PEAK_BF16_FLOPS, Hardware, Precision, data_sheet_name
from gptstar.training.memory import own_part
from gptstar.training.optimizers import Optimizer
from gptstar.training.optimizers.adamw import AdamW
from gptstar.training.recipe import Recipe

CPU_PROGRAM, GPU_PROGRAM = 600_000_000, 1_500_000_000
"""Bytes of Python, PyTorch and its libraries; of a GPU its context and libraries, assumed."""

ASSUMED = "assumed"
ASSUMED_SHARE = 0.4
SHARES = {"H200": (0.48, "measured with a prototype of the same graph")}
"""Shares of the data sheet's peak that training reaches on a GPU, by the names of `PEAK_BF16_FLOPS`, and their source
(docs/speed.md)."""
CPU_SHARE = (0.7, "measured")

GPU_MEMORY = {"B200": 180, "H200": 141, "H100 PCIe": 80, "H100": 80, "A100": 80, "L40S": 48, "4090": 24, "3090": 24}
"""GB, by the names of `PEAK_BF16_FLOPS`."""

TYPICAL_PEAK = 300e12
"""Floating-point operations a second of a GPU without a data sheet here; it decides how much work fills it."""

EAGER_LOGIT = 12
"""Bytes of a logit that a loss without a compiler makes in float32: itself, its softmax, and the gradient of both."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a device holds at the height of a training step.

    Attributes:
        parameters, gradients, optimizer: in float32, 16 bytes a parameter in all, 4 less in Muon's matrices, 6 less
            with moments in 8 bits; with FSDP this rank's part.
        averaged: averaged weights, in float32; with FSDP this rank's part.
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
    averaged: int
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


ADAMW = AdamW(learning_rate=1e-3)


@dataclass(frozen=True)
class Workload:
    """What a device computes in an optimizer step.

    Attributes:
        shards: the ranks that share parameters, gradients and optimizer state; 1 without FSDP.
        on_gpu: attention keeps no weights.
        optimizer: whose state is held.
        averaging: whose average is held.
        compiled: of a GPU: the logits become their own gradient. Else each step of the loss makes a tensor.
        sequences: of a step, on each device.
    """

    model: GPTConfig
    context_length: int
    precision: Precision
    activation_checkpointing: bool = False
    shards: int = 1
    on_gpu: bool = True
    optimizer: Optimizer = ADAMW
    averaging: Averaging = NO_AVERAGE
    compiled: bool = True
    sequences: int = 1

    @classmethod
    def planned(cls, recipe: Recipe, hardware: Hardware, *, on_gpu: bool) -> Self:
        """The workload of a configuration; a GPU that is not here computes in bf16."""
        elsewhere = on_gpu and hardware.device().type == "cpu" and hardware.precision == "auto"
        return cls(
            recipe.model,
            recipe.data.context_length,
            "bf16" if elsewhere else hardware.resolved_precision(),
            hardware.activation_checkpointing,
            shards=hardware.world_size if hardware.sharded else 1,
            on_gpu=on_gpu,
            optimizer=recipe.optimizer,
            averaging=recipe.averaging,
            compiled=hardware.compile != "never",
            sequences=recipe.sequences_per_step // hardware.world_size,
        )

    def memory(self, sequences: int, logits_at_once: int = LOGITS_AT_ONCE) -> Memory:
        """What a device holds.

        Args:
            sequences: of a micro-batch.
            logits_at_once: logits that the loss holds; of a micro-batch with more, pieces are computed twice.
        """
        model, shards, precision = self.model, self.shards, self.precision
        embedding, of_block = model.n_vocab * model.d_model, self._block_params
        averaged = self.averaging.state_bytes(model)
        copied = 4 * model.n_params + self.optimizer.state_bytes(model) + averaged
        casts = gathered = 0
        if shards > 1:
            gathered = 4 * (embedding + of_block)  # gradients, before they are shared out
            gathered += (2 if precision == "bf16_weights" else 4) * (embedding + 2 * of_block)  # one block ahead
        if precision == "bf16" or (precision == "bf16_weights" and shards == 1):
            casts = 2 * (embedding + of_block if shards > 1 else model.n_params)
        return Memory(
            parameters=4 * model.n_params // shards,
            gradients=4 * model.n_params // shards,
            optimizer=self.optimizer.state_bytes(self.model) // shards,
            averaged=averaged // shards,
            casts=casts,
            gathered=gathered,
            activations=self._activations(sequences * self.context_length),
            logits=self._logits(sequences * self.context_length, logits_at_once),
            saving=0 if self.on_gpu else copied // shards,
            program=GPU_PROGRAM if self.on_gpu else CPU_PROGRAM,
        )

    @property
    def _width(self) -> int:
        return 4 if self.precision == "float32" else 2

    @property
    def _block_params(self) -> int:
        return (self.model.n_params - self.model.n_vocab * self.model.d_model) // self.model.n_layers

    def _activations(self, tokens: int) -> int:
        """What autograd keeps of a token in a block.

        It is the residual stream, the norm as each branch reads it, queries, keys and values, the heads' outputs (a
        kernel keeps its own, the projection a copy), the MLP before and after its GELU. A softmax's scale that is
        learned keeps queries in float32; on a CPU in float32 these are a part of the projection, which stays whole.
        """
        model, width = self.model, self._width
        D, F, A = model.d_model, model.mlp_width, model.n_heads * model.head_width
        scores = 0 if self.on_gpu or self.context_length > KEPT_UP_TO else model.n_heads * self.context_length
        residual = 2 if self.precision == "bf16_weights" else 4
        norms = len(BLOCKS.find(model.residual).norms)
        normed = 2 * D * width if self.precision == "bf16" else norms * D * width
        outputs = 2 if self.on_gpu else 1
        kept = norms * D * residual + normed + width * ((3 + outputs) * A + 2 * F + scores)
        if model.softmax_scale.counts_keys:
            kept += 12 * A if self.precision == "float32" and not self.on_gpu else 4 * A
        again = residual * D * model.n_layers + kept
        return tokens * (again if self.activation_checkpointing else kept * model.n_layers) + tokens * 8 * D

    def _logits(self, tokens: int, at_once: int) -> int:
        """Logits, which become their own gradient, and the head's gradient by what it reads.

        Measured on a GPU: a compiled step of GPT-127* at 64 x 512 tokens peaks at 11.5 GB, of which this is 3.4.
        """
        model, width = self.model, self._width
        room = aligned_rows(model.n_vocab) if self.on_gpu else model.n_vocab
        padded = width * room * model.d_model if room > model.n_vocab else 0
        held = min(tokens * room, at_once)
        in_pieces = self.on_gpu and tokens * room > at_once  # a piece's gradient beside it, once it is computed again
        a_logit = width * (2 if in_pieces else 1)
        if self.on_gpu and not self.compiled:
            a_logit = 2 * width + EAGER_LOGIT
        return a_logit * held + 4 * tokens * model.d_model + padded


@dataclass(frozen=True)
class Device:
    """What a device has, by its data sheet or as measured.

    Attributes:
        memory: bytes.
        peak_flops: in bfloat16.
        share: of that, what training reaches.
        is_gpu: or a CPU.
        source: where the share is from; `assumed` where nothing was measured.
    """

    name: str
    memory: int
    peak_flops: float
    share: float
    is_gpu: bool
    source: str = ASSUMED


def known_device(name: str) -> Device:
    """A GPU by its name, or a part of it such as `H100`.

    Raises:
        ConfigError: we have no data sheet of it.
    """
    known = data_sheet_name(name)
    if known is None:
        raise ConfigError(f"--device {name} is none of {', '.join(GPU_MEMORY)}")
    share, source = SHARES.get(known, (ASSUMED_SHARE, ASSUMED))
    return Device(known, GPU_MEMORY[known] * 10**9, PEAK_BF16_FLOPS[known], share, is_gpu=True, source=source)


def this_device(hardware: Hardware) -> Device:
    """What this machine has for each process; the rate of a device without a data sheet is measured, in a second."""
    if hardware.device().type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        known = data_sheet_name(properties.name)
        share, source = SHARES.get(known or "", (ASSUMED_SHARE, ASSUMED))
        peak = PEAK_BF16_FLOPS[known] if known else _measured_flops(torch.device("cuda"), torch.bfloat16)
        return Device(properties.name, properties.total_memory, peak, share, is_gpu=True, source=source)
    dtype = torch.float32 if hardware.resolved_precision() == "float32" else torch.bfloat16
    flops = _measured_flops(torch.device("cpu"), dtype)  # all cores, which the processes share
    name = f"a process of this CPU ({flops / 1e9:,.0f} GFLOP/s in all)"
    memory, peak = machine_bytes() // hardware.n_devices, flops / hardware.n_devices
    return Device(name, memory, peak, CPU_SHARE[0], is_gpu=False, source=CPU_SHARE[1])


def free_device(hardware: Hardware) -> Device:
    """This process's device, with the memory that is free now; of a GPU that jobs share, this job's part."""
    if hardware.device().type == "cpu":
        return Device("cpu", machine_bytes(), 0.0, 1.0, is_gpu=False)
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = data_sheet_name(properties.name)
    peak = PEAK_BF16_FLOPS[known] if known else TYPICAL_PEAK
    return Device(properties.name, int(min(free, own_part() * total)), peak, ASSUMED_SHARE, is_gpu=True)


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


def check_fits(workload: Workload, device: Device) -> None:
    """See that a device holds parameters, gradients and optimizer state, before anything is prepared.

    Raises:
        ConfigError: it does not; says how much there is.
    """
    needed = workload.memory(1)
    state = needed.parameters + needed.gradients + needed.optimizer + needed.averaged
    if state > device.memory:
        raise ConfigError(
            f"model: {workload.model.n_params:,} parameters need {state / 1e9:,.0f} GB of memory on each device with "
            f"their gradients and the optimizer's state, and there are {device.memory / 1e9:,.0f} GB: give a smaller "
            "model, or split it over devices by hardware=fsdp"
        )


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

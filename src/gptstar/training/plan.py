"""Estimates of a run's needs, by arithmetic: memory per device, and time."""

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
"""Bytes of memory for Python, PyTorch and its libraries, and on a GPU for its context and libraries (assumed)."""

ASSUMED = "assumed"
ASSUMED_SHARE = 0.4
SHARES = {"H200": (0.48, "measured with a prototype of the same graph")}
"""The share of the data sheet's peak that training reaches on a GPU, and its source (docs/speed.md). The keys are those
of `PEAK_BF16_FLOPS`."""
CPU_SHARE = (0.7, "measured")

GPU_MEMORY = {"B200": 180, "H200": 141, "H100 PCIe": 80, "H100": 80, "A100": 80, "L40S": 48, "4090": 24, "3090": 24}
"""Memory of GPUs in GB, by the keys of `PEAK_BF16_FLOPS`."""

TYPICAL_PEAK = 300e12
"""Floating-point operations per second assumed for a GPU without a data sheet, to choose its micro-batches."""

EAGER_LOGIT = 12
"""Bytes per logit of an uncompiled loss, in float32: the logit, its softmax, and the gradient of both."""


@dataclass(frozen=True)
class Memory:
    """The peak memory of a device in a training step, in bytes by purpose. With FSDP, tensors are this rank's shards.

    Attributes:
        parameters, gradients, optimizer: the training state in float32: 16 bytes per parameter in all, 4 fewer for
            Muon's matrices, 6 fewer with 8-bit moments.
        averaged: averaged weights in float32.
        casts: parameters in bfloat16.
        gathered: with FSDP, full parameters of the embedding and of two blocks, and the gradients of one block.
        activations: tensors that the backward pass reads.
        logits: the logits that are computed at once, and the gradient of the head's input.
        saving: the copy of a checkpoint while it is written; 0 on a GPU, whose copy lies in the machine's memory.
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
        """The sum of all parts."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the parts by name, without those that are 0."""
        return {each.name: size for each in fields(self) if (size := getattr(self, each.name))}


ADAMW = AdamW(learning_rate=1e-3)


@dataclass(frozen=True)
class Workload:
    """The work of a device in an optimizer step, from which its memory follows.

    Attributes:
        shards: the number of ranks over which parameters, gradients and optimizer state are sharded; 1 without FSDP.
        on_gpu: whether the device is a GPU, where attention stores no weights.
        optimizer: the optimizer, for the size of its state.
        averaging: the kind of averaging, for the size of its state.
        compiled: whether a GPU compiles the loss, so that logits are turned into their gradient in place.
        sequences: the sequences of a step on each device.
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
        """Return the workload of a configuration; a GPU that this machine lacks is assumed to compute in bf16."""
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
        """Estimate the memory of a device.

        Args:
            sequences: the sequences of a micro-batch.
            logits_at_once: the most logits that the loss holds; it computes those of a larger micro-batch in pieces.
        """
        model, shards, precision = self.model, self.shards, self.precision
        embedding, of_block = model.n_vocab * model.d_model, self._block_params
        averaged = self.averaging.state_bytes(model)
        copied = 4 * model.n_params + self.optimizer.state_bytes(model) + averaged
        casts = gathered = 0
        if shards > 1:
            gathered = 4 * (embedding + of_block)  # gradients, before they are reduced and scattered
            gathered += (2 if precision == "bf16_weights" else 4) * (embedding + 2 * of_block)  # two: one is prefetched
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
        """Estimate the bytes of the tensors that autograd keeps for the backward pass.

        In each block these are the residual stream, the norms' outputs, queries, keys and values, the heads' outputs (a
        GPU's kernel and the projection each keep a copy), and the MLP before and after its GELU. A learned softmax
        scale also keeps the queries in float32.
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
        """Estimate the bytes of the logits, which are turned into their gradient in place, and of the hidden gradient.

        In a compiled step of GPT-127* at 64 x 512 tokens on a GPU, which peaked at 11.5 GB, this is 3.4 GB.
        """
        model, width = self.model, self._width
        room = aligned_rows(model.n_vocab) if self.on_gpu else model.n_vocab
        padded = width * room * model.d_model if room > model.n_vocab else 0
        held = min(tokens * room, at_once)
        in_pieces = self.on_gpu and tokens * room > at_once  # a recomputed piece and its gradient coexist
        a_logit = width * (2 if in_pieces else 1)
        if self.on_gpu and not self.compiled:
            a_logit = 2 * width + EAGER_LOGIT
        return a_logit * held + 4 * tokens * model.d_model + padded


@dataclass(frozen=True)
class Device:
    """The memory and speed of a device, by its data sheet or as measured.

    Attributes:
        memory: the memory in bytes.
        peak_flops: the peak rate in floating-point operations per second.
        share: the share of that rate that training reaches.
        is_gpu: whether the device is a GPU; otherwise it is a CPU.
        source: the source of the share; `assumed` if it was not measured.
    """

    name: str
    memory: int
    peak_flops: float
    share: float
    is_gpu: bool
    source: str = ASSUMED


def known_device(name: str) -> Device:
    """Return a GPU by its name, or by a part of it such as `H100`.

    Raises:
        ConfigError: its data sheet is unknown.
    """
    known = data_sheet_name(name)
    if known is None:
        raise ConfigError(f"--device {name} is unknown: choose one of {', '.join(GPU_MEMORY)}")
    share, source = SHARES.get(known, (ASSUMED_SHARE, ASSUMED))
    return Device(known, GPU_MEMORY[known] * 10**9, PEAK_BF16_FLOPS[known], share, is_gpu=True, source=source)


def this_device(hardware: Hardware) -> Device:
    """Return this machine's device per process; without a data sheet, its rate is measured for a second."""
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
    """Return this process's device with the memory that is free now, within the job's share of a GPU."""
    if hardware.device().type == "cpu":
        return Device("cpu", machine_bytes(), 0.0, 1.0, is_gpu=False)
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = data_sheet_name(properties.name)
    peak = PEAK_BF16_FLOPS[known] if known else TYPICAL_PEAK
    return Device(properties.name, int(min(free, own_part() * total)), peak, ASSUMED_SHARE, is_gpu=True)


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a matrix product on all cores."""
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
    """Check that parameters, gradients and optimizer state fit into a device, before the text is prepared.

    Raises:
        ConfigError: they don't fit; the message states the needed and the available memory.
    """
    needed = workload.memory(1)
    state = needed.parameters + needed.gradients + needed.optimizer + needed.averaged
    if state > device.memory:
        raise ConfigError(
            f"model: {workload.model.n_params:,} parameters with gradients and optimizer state need "
            f"{state / 1e9:,.0f} GB of memory on each device, which has {device.memory / 1e9:,.0f} GB: choose a "
            "smaller model, or shard it over devices with hardware=fsdp"
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
    """Estimate the seconds of a step on devices that reach the given share of their peak and wait for no data."""
    again = 4 / 3 if activation_checkpointing else 1.0
    return again * model.training_flops(context_length) * batch_tokens / (device.peak_flops * device.share * devices)

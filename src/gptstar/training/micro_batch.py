"""How a step is split into micro-batches: what fills a device, and fits into its memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

from gptstar.errors import TrainingError
from gptstar.model.loss import LOGITS_AT_ONCE, aligned_rows
from gptstar.ranks import Ranks
from gptstar.training.hardware import Hardware
from gptstar.training.plan import Device, Workload, free_device

CPU_SEQUENCES, SHARED_CPU_SEQUENCES = 8, 64
"""Sequences that a CPU computes at once: as one process, and as each of several."""

FILLING_SECONDS = 0.025
"""Work that fills a GPU, in seconds at its peak: smaller micro-batches leave a part of it idle. By arithmetic, at an
H100's data sheet, 64 sequences of 512 tokens for GPT-127* and 32 for GPT-303*."""

SHARDED = 4
"""Times as much work where parameters are gathered for each micro-batch."""

USABLE = 0.92
"""Share of the free memory to plan with; the rest is lost to fragments and to what arithmetic does not know."""

PIECE_LOGITS = 2**28
"""Logits that a GPU holds at once where the whole do not fit: 512 MiB in bfloat16."""


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of an optimizer step on each device, all of one size.

    Attributes:
        size: sequences computed at once.
        accumulate: micro-batches of a step.
        logits_at_once: logits that the loss holds; a micro-batch with more is computed in pieces.
    """

    size: int
    accumulate: int
    logits_at_once: int = LOGITS_AT_ONCE

    def __str__(self) -> str:
        return f"{self.size} sequences at once" + (f", {self.accumulate} times a step" if self.accumulate > 1 else "")

    def as_dict(self, world_size: int) -> dict[str, Any]:
        """Return what a checkpoint stores, so that a run continues with the same micro-batches."""
        return asdict(self) | {"world_size": world_size}

    @classmethod
    def restored(cls, saved: dict[str, Any], sequences: int, world_size: int) -> Self | None:
        """Read what `as_dict` gave; None if it is damaged, or is of another batch or number of devices."""
        keys = ("size", "accumulate", "logits_at_once", "world_size")
        if not all(isinstance(saved.get(key), int) and saved[key] > 0 for key in keys):
            return None
        size, accumulate, logits_at_once, devices = (saved[key] for key in keys)
        fits = devices == world_size and size * accumulate == sequences
        return cls(size, accumulate, logits_at_once) if fits else None


def micro_batches(hardware: Hardware, workload: Workload, device: Device) -> MicroBatches:
    """Split a device's sequences of a step.

    Args:
        device: its `memory` is what is free.

    Returns:
        The largest that `hardware.micro_batch_size` allows; with `auto` the largest that fits, and no larger than
        needed to fill the device.
    """
    sizes = _divisors(workload.sequences)
    if hardware.micro_batch_size != "auto" or not workload.on_gpu:
        on_cpu = CPU_SEQUENCES if hardware.world_size == 1 else SHARED_CPU_SEQUENCES
        at_most = on_cpu if hardware.micro_batch_size == "auto" else hardware.micro_batch_size
        sizes = [next(size for size in sizes if size <= at_most)]
    else:
        work = FILLING_SECONDS * device.peak_flops * (SHARDED if workload.shards > 1 else 1)
        tokens = work / workload.model.training_flops(workload.context_length)
        filling = min((size for size in sizes if size * workload.context_length >= tokens), default=sizes[0])
        sizes = [size for size in sizes if size <= filling]
    choices = list(_choices(hardware, workload, sizes))
    fitting = (each for each in choices if workload.memory(*each).total <= USABLE * device.memory)
    size, logits_at_once = next(fitting, choices[-1])
    return MicroBatches(size, workload.sequences // size, logits_at_once)


def _divisors(sequences: int) -> list[int]:
    """Sizes that split a step into micro-batches of one size, the largest first."""
    small = [size for size in range(1, math.isqrt(sequences) + 1) if sequences % size == 0]
    return sorted({*small, *(sequences // size for size in small)}, reverse=True)


def _choices(hardware: Hardware, workload: Workload, sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Sizes, each with the logits to hold at once, the fastest first.

    Whole logits save a third of the head's work: rather a quarter of the size with them than all of it without.
    """
    if not workload.on_gpu:
        yield from ((size, LOGITS_AT_ONCE) for size in sizes)
        return
    for size in sizes:
        if hardware.logits == "whole" or (hardware.logits == "auto" and 4 * size >= sizes[0]):
            yield size, whole_logits(workload, size)
    if hardware.logits != "whole":
        yield from ((size, PIECE_LOGITS) for size in sizes)


def whole_logits(workload: Workload, size: int) -> int:
    """Logits of a micro-batch, with those of added rows."""
    return size * workload.context_length * aligned_rows(workload.model.n_vocab)


def agreed_micro_batches(
    hardware: Hardware,
    workload: Workload,
    saved: dict[str, Any],
    ranks: Ranks,
    warn: Callable[[str], None],
) -> MicroBatches:
    """Choose the micro-batches of a run, alike on all ranks: those of its checkpoint, or what every rank can hold.

    Args:
        saved: the micro-batches in the checkpoint; empty for a new run.
        warn: gets a line if the devices can't hold those of the checkpoint.
    """
    device = free_device(hardware)
    each = ranks.gathered(micro_batches(hardware, workload, device))
    size = min(planned.size for planned in each)
    agreed = MicroBatches(size, workload.sequences // size, min(planned.logits_at_once for planned in each))
    saved_batches = MicroBatches.restored(saved, workload.sequences, ranks.world_size)
    if saved_batches is None or not device.is_gpu or not _allowed(saved_batches, hardware, workload):
        return agreed
    if all(ranks.gathered(workload.memory(saved_batches.size, saved_batches.logits_at_once).total <= device.memory)):
        return saved_batches
    warn(
        f"warning: the checkpoint's {saved_batches.size} sequences at once do not fit the memory that is free: "
        f"the run goes on with {agreed.size}, and its losses may differ in their last digits"
    )
    return agreed


def _allowed(batches: MicroBatches, hardware: Hardware, workload: Workload) -> bool:
    """Whether the configuration would allow the micro-batches of a checkpoint."""
    at_most = hardware.micro_batch_size
    if at_most != "auto" and batches.size != next(size for size in _divisors(workload.sequences) if size <= at_most):
        return False
    whole = batches.logits_at_once >= whole_logits(workload, batches.size)
    return hardware.logits == "auto" or whole == (hardware.logits == "whole")


def out_of_memory(batches: MicroBatches) -> TrainingError:
    """Return the error for a device that can't hold a step."""
    smaller = f"hardware.micro_batch_size={batches.size // 2}" if batches.size > 1 else "a smaller model"
    return TrainingError(
        f"the GPU's memory does not hold a step of {batches}: give {smaller}, hardware.logits=pieces or "
        "hardware.activation_checkpointing=true"
    )

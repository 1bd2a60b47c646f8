"""The split of a step into micro-batches that fill a device and fit into its memory."""

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
"""The most sequences that a CPU process computes at once: as the only process, and as one of several."""

FILLING_SECONDS = 0.025
"""The least work of a micro-batch that keeps a GPU fully busy, in seconds at its peak rate. At the data sheet's rate of
an H100, this is 64 sequences of 512 tokens for GPT-127* and 32 for GPT-303*."""

SHARDED = 4
"""The factor on that work if parameters are gathered for each micro-batch (FSDP)."""

USABLE = 0.92
"""The share of free memory to plan with; the rest allows for fragmentation and errors of the estimate."""

PIECE_LOGITS = 2**28
"""The logits that a GPU computes at once if they do not fit as a whole: 512 MiB in bfloat16."""


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of an optimizer step on each device, all of one size.

    Attributes:
        size: the number of sequences of a micro-batch.
        accumulate: the number of micro-batches of a step.
        logits_at_once: the most logits that the loss holds; it computes those of a larger micro-batch in pieces.
    """

    size: int
    accumulate: int
    logits_at_once: int = LOGITS_AT_ONCE

    def __str__(self) -> str:
        return f"{self.size} sequences at once" + (f", {self.accumulate} times a step" if self.accumulate > 1 else "")

    def as_dict(self, world_size: int) -> dict[str, Any]:
        """Return the values that a checkpoint stores, so that a resumed run has the same micro-batches."""
        return asdict(self) | {"world_size": world_size}

    @classmethod
    def restored(cls, saved: dict[str, Any], sequences: int, world_size: int) -> Self | None:
        """Restore from the result of `as_dict`; None if it is damaged, or made for another batch or device count."""
        keys = ("size", "accumulate", "logits_at_once", "world_size")
        if not all(isinstance(saved.get(key), int) and saved[key] > 0 for key in keys):
            return None
        size, accumulate, logits_at_once, devices = (saved[key] for key in keys)
        fits = devices == world_size and size * accumulate == sequences
        return cls(size, accumulate, logits_at_once) if fits else None


def micro_batches(hardware: Hardware, workload: Workload, device: Device) -> MicroBatches:
    """Split a device's sequences of one step into micro-batches.

    Args:
        device: the device, with the free memory as its `memory`.

    Returns:
        The largest micro-batches that `hardware.micro_batch_size` allows; with `auto`, those that fill the device, if
        they fit into its memory.
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
    """Return the sizes that split a step into equal micro-batches, the largest first."""
    small = [size for size in range(1, math.isqrt(sequences) + 1) if sequences % size == 0]
    return sorted({*small, *(sequences // size for size in small)}, reverse=True)


def _choices(hardware: Hardware, workload: Workload, sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Yield sizes with the number of logits to hold at once, the fastest choice first.

    Whole logits save a third of the output head's work. This outweighs micro-batches of a quarter of the size.
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
    """Count the logits of a micro-batch, including those of padded rows."""
    return size * workload.context_length * aligned_rows(workload.model.n_vocab)


def agreed_micro_batches(
    hardware: Hardware,
    workload: Workload,
    saved: dict[str, Any],
    ranks: Ranks,
    warn: Callable[[str], None],
) -> MicroBatches:
    """Choose the micro-batches of a run, the same on all ranks: the checkpoint's, or else ones that fit every rank.

    Args:
        saved: the micro-batches in the checkpoint; empty for a new run.
        warn: a function that prints a warning if those of the checkpoint don't fit.
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
        f"warning: the checkpoint's {saved_batches.size} sequences at once do not fit into the free memory: the run "
        f"continues with {agreed.size}, and its losses may differ in their last digits"
    )
    return agreed


def _allowed(batches: MicroBatches, hardware: Hardware, workload: Workload) -> bool:
    """Whether the configuration allows the micro-batches of a checkpoint."""
    at_most = hardware.micro_batch_size
    if at_most != "auto" and batches.size != next(size for size in _divisors(workload.sequences) if size <= at_most):
        return False
    whole = batches.logits_at_once >= whole_logits(workload, batches.size)
    return hardware.logits == "auto" or whole == (hardware.logits == "whole")


def out_of_memory(batches: MicroBatches) -> TrainingError:
    """Return the error for a step that exceeds the device's memory."""
    smaller = f"hardware.micro_batch_size={batches.size // 2}" if batches.size > 1 else "a smaller model"
    return TrainingError(
        f"a step of {batches} exceeds the GPU's memory: try {smaller}, hardware.logits=pieces or "
        "hardware.activation_checkpointing=true"
    )

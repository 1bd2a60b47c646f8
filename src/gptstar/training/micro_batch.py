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
        """What a checkpoint keeps, so that a run goes on with the same."""
        return asdict(self) | {"world_size": world_size}

    @classmethod
    def kept(cls, saved: dict[str, Any], sequences: int, world_size: int) -> Self | None:
        """What a run of this size kept; None where it kept nothing, or had another number of devices."""
        wanted = ("size", "accumulate", "logits_at_once", "world_size")
        if not all(isinstance(saved.get(key), int) and saved[key] > 0 for key in wanted):
            return None
        size, accumulate, logits_at_once, devices = (saved[key] for key in wanted)
        fits = devices == world_size and size * accumulate == sequences
        return cls(size, accumulate, logits_at_once) if fits else None


def micro_batches(hardware: Hardware, workload: Workload, sequences: int, device: Device) -> MicroBatches:
    """Split a device's sequences of a step.

    Args:
        sequences: of a step, on each device.
        device: its `memory` is what is free.

    Returns:
        The largest that `hardware.micro_batch_size` allows; with `auto` the largest that fits, and no larger than
        needed to fill the device.
    """
    sizes = _divisors(sequences)
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
    return MicroBatches(size, sequences // size, logits_at_once)


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
    sequences: int,
    saved: dict[str, Any],
    ranks: Ranks,
    warn: Callable[[str], None],
) -> MicroBatches:
    """The micro-batches of a run, alike on all ranks: what its checkpoint kept, or what every rank can hold.

    Args:
        sequences: of a step, on each device.
        saved: what the checkpoint kept; empty for a run that begins.
        warn: gets a line if the devices don't hold what was kept.
    """
    device = free_device(hardware)
    each = ranks.gathered(micro_batches(hardware, workload, sequences, device))
    agreed = min(found.size for found in each)
    found = MicroBatches(agreed, sequences // agreed, min(found.logits_at_once for found in each))
    kept = MicroBatches.kept(saved, sequences, ranks.world_size)
    if kept is None or not device.is_gpu or not _allowed(kept, hardware, workload, sequences):
        return found
    if all(ranks.gathered(workload.memory(kept.size, kept.logits_at_once).total <= device.memory)):
        return kept
    warn(
        f"warning: the checkpoint's {kept.size} sequences at once do not fit the memory that is free: the run goes on "
        f"with {found.size}, and its losses may differ in their last digits"
    )
    return found


def _allowed(kept: MicroBatches, hardware: Hardware, workload: Workload, sequences: int) -> bool:
    """Whether the keys would allow what was kept."""
    asked = hardware.micro_batch_size
    if asked != "auto" and kept.size != next(size for size in _divisors(sequences) if size <= asked):
        return False
    whole = kept.logits_at_once >= whole_logits(workload, kept.size)
    return hardware.logits == "auto" or whole == (hardware.logits == "whole")


def out_of_memory(batches: MicroBatches) -> TrainingError:
    """What to say where the device does not hold what was planned."""
    smaller = f"hardware.micro_batch_size={batches.size // 2}" if batches.size > 1 else "a smaller model"
    return TrainingError(
        f"the GPU's memory does not hold a step of {batches}: give {smaller}, hardware.logits=pieces or "
        "hardware.activation_checkpointing=true"
    )

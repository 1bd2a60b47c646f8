"""The ways to read with a checkpoint: plain, with scaled positions, with attention cut, or a truncated text."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from gptstar.checkpoint.format import Checkpoint
from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.length.config import CUTS, TRUNCATED, LengthConfig
from gptstar.evaluation.length.curve import Context, Curve, Read, read_curve, read_truncated
from gptstar.evaluation.length.cut import attention_cut, cut_mask
from gptstar.evaluation.length.reading import CPU_BATCH_TOKENS, Reader, losses_of
from gptstar.evaluation.length.source import Part
from gptstar.model import GPT
from gptstar.model.attention import scaled_positions
from gptstar.model.mask import Mask
from gptstar.model.positions import Scaling

IN_NAMES = {"none": "", "ntk": ", NTK", "yarn": ", YaRN"}
"""The suffix of a curve's name, by the scaling of its positions; other methods appear under their own name."""

Within = contextlib.AbstractContextManager[object]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to read.

    Attributes:
        suffix: the suffix of its curve's name.
        same_up_to: the longest length at which it gives the same losses as the plain way.
        within: returns the context manager to read a length in.
    """

    suffix: str
    same_up_to: float
    within: Callable[[int], Within] = lambda _: contextlib.nullcontext()
    scaling: str = "none"
    context: Context = "full"

    @property
    def is_plain(self) -> bool:
        """Whether nothing is scaled or cut."""
        return self.scaling == "none" and self.context == "full"


def ways_of(part: Part, model: GPT) -> Iterator[Way]:
    """Yield the ways to read with a checkpoint; the controls come last."""
    trained_at = part.trained_at or 0
    for scaling in part.scalings:
        if scaling == "none":
            yield Way("", math.inf)
        else:
            suffix = IN_NAMES.get(scaling, f", {scaling}")
            yield Way(suffix, trained_at, partial(_scaled, model, scaling, trained_at), scaling=scaling)
    for context in part.controls:
        if context == TRUNCATED:
            yield Way(f", {context}", trained_at, context=context)
            continue
        mask = cut_mask(model.mask, trained_at, CUTS[context])
        same_up_to = math.inf if mask == model.mask else trained_at
        suffix = f", {context.replace('_', ' ')}"
        yield Way(suffix, same_up_to, partial(_cut, model, mask, trained_at), context=context)


def _scaled(model: GPT, scaling: str, trained_at: int, length: int) -> Within:
    return scaled_positions(model, Scaling(scaling, max(1.0, length / trained_at), trained_at))


def _cut(model: GPT, mask: Mask, trained_at: int, length: int) -> Within:
    return attention_cut(model, mask) if length > trained_at else contextlib.nullcontext()


def reader_of(
    checkpoint: Checkpoint, config: LengthConfig, device: torch.device, advance: Callable[[int], object]
) -> tuple[GPT, Reader]:
    """Build the model of a checkpoint, and a reader for it."""
    model = checkpoint.build().to(device)
    reader = Reader(
        losses_of(model, device, getattr(torch, config.dtype)),
        device,
        config.batch_tokens or batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS).tokens,
        capacity=checkpoint.model.positions.capacity,
        advance=advance,
    )
    return model, reader


def read_in_each_way(part: Part, model: GPT, reader: Reader) -> Iterator[tuple[Curve, dict[int, Read]]]:
    """Yield each way's curve and its losses; losses that equal those of the plain way are not computed again."""
    plain: dict[int, Read] = {}
    for way in ways_of(part, model):
        known = plain if way.is_plain else {length: read for length, read in plain.items() if length <= way.same_up_to}
        name = f"{part.name}{way.suffix}"
        reads_so = replace(reader, within=way.within)
        if way.context == TRUNCATED:
            curve = read_truncated(reads_so, part.fixed_plan, name=name, trained_at=part.trained_at or 0, known=known)
        else:
            curve = read_curve(reads_so, part.plan, name=name, trained_at=part.trained_at, known=known)
        yield replace(curve, scaling=way.scaling, context=way.context, checkpoint=dict(part.identity)), known

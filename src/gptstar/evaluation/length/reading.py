"""Reading of windows by a model: the loss of every target, and the time and memory of reading."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptstar.evaluation.length.protocols import Window
from gptstar.evaluation.length.text import Text
from gptstar.evaluation.precision import computing_in
from gptstar.inference.memory import peak_bytes
from gptstar.model import GPT
from gptstar.model.loss import token_losses

CPU_BATCH_TOKENS = 2**13

Losses = Callable[[Tensor, int], Tensor]
"""A function from tokens `(batch, position + 1)`, int64, and the first position that counts, to the losses of the
targets of that position and of all after it, `(batch, position - first)`, in nats."""


def losses_of(model: GPT, device: torch.device, dtype: torch.dtype = torch.float32) -> Losses:
    """Return a function that computes the losses of a model in eval mode, with matrix products in `dtype`."""

    @torch.inference_mode()
    def losses(tokens: Tensor, first: int) -> Tensor:
        tokens = tokens.to(device)
        with computing_in(dtype, device):
            hidden = model.hidden(tokens[:, :-1])[:, first:]
            return token_losses(hidden, model.token_embedding.weight, tokens[:, 1 + first :])

    return losses


@dataclass
class Cost:
    """The cost of reading: wall time, peak memory, and the memory in use before it began (`held`), both in bytes."""

    seconds: float = 0.0
    memory: int = 0
    held: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Reader:
    """A model that reads windows.

    Attributes:
        batch_tokens: the number of tokens to read at once, or one window if that is longer.
        capacity: the number of learned positions; longer contexts are undefined. None if there is no limit.
        within: returns the context manager to read a length in, such as a scaling of rotary positions.
        advance: a callback that receives the number of tokens read, after each batch.
    """

    losses: Losses
    device: torch.device
    batch_tokens: int
    capacity: int | None = None
    within: Callable[[int], contextlib.AbstractContextManager[object]] = lambda _: contextlib.nullcontext()
    advance: Callable[[int], object] = lambda _: None

    def is_defined(self, length: int) -> bool:
        """Whether the model has positions for a length."""
        return self.capacity is None or length <= self.capacity

    def read(self, text: Text, windows: Sequence[Window], n_targets: int, length: int) -> tuple[np.ndarray, Cost]:
        """Compute the losses of all targets, `(target,)`, float32, in nats, and measure the cost.

        Windows of similar sizes are read together, padded at their ends, where no scored target sees the padding.
        """
        losses = np.full(n_targets, np.nan, dtype=np.float32)
        with self.within(length), measured(self.device) as cost:
            for batch in batches(windows, self.batch_tokens):
                longest = max(window.size for window in batch)
                tokens = np.zeros((len(batch), longest + 1), dtype=np.int64)
                for row, window in zip(tokens, batch, strict=True):
                    row[: window.size + 1] = text.documents[window.document].read(window.start, window.size + 1)
                first = min(window.size - window.scored for window in batch)
                rows = self.losses(torch.from_numpy(tokens), first).float().cpu().numpy()
                for row, window in zip(rows, batch, strict=True):
                    scored = row[window.size - window.scored - first : window.size - first]
                    losses[window.at : window.at + window.scored] = scored
                self.advance(sum(window.size for window in batch))
        return losses, cost


def batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Group windows to be read together, the longest first, so that a lack of memory shows at once."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda each: (-each.size, each.at)):
        if batch and (len(batch) + 1) * batch[0].size > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure time and memory within the context; the figures are complete at its end."""
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        cost.held = torch.cuda.memory_allocated(device)
    else:
        with contextlib.suppress(OSError):  # Linux forgets a process's peak on request; elsewhere it never falls
            Path("/proc/self/clear_refs").write_text("5")
        cost.held = peak_bytes(device) or 0
    start = time.perf_counter()
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - start
    cost.memory = peak_bytes(device) or 0


def growth(lengths: Sequence[int], values: Sequence[float], *, least: int = 3) -> float:
    """Fit the exponent k with which values grow as `length^k`, by a line through their logarithms.

    NaN for fewer than `least` values, if one is not positive, or if the line explains less than nine tenths of their
    variance.
    """
    if len(lengths) < least or min(values) <= 0:
        return float("nan")
    x, y = np.log(lengths), np.log(values)
    if y.std() == 0 or np.corrcoef(x, y)[0, 1] ** 2 < 0.9:
        return float("nan")
    return float(np.polyfit(x, y, 1)[0])

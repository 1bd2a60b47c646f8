"""Windows read by a model: the loss of every target, and what reading took."""

import contextlib
import resource
import sys
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
from gptstar.model import GPT
from gptstar.model.loss import token_losses

CPU_BATCH_TOKENS = 2**13

Losses = Callable[[Tensor, int], Tensor]
"""From tokens `(batch, position + 1)`, int64, and the first position that counts, the losses of the targets of that
position and of all after it, `(batch, position - first)`, in nats."""


def losses_of(model: GPT, device: torch.device, dtype: torch.dtype = torch.float32) -> Losses:
    """Return a function that computes a model's losses.

    Args:
        model: in eval mode, on `device`.
        dtype: of the products: float32 without TF32, or less by autocast.
    """

    @torch.inference_mode()
    def losses(tokens: Tensor, first: int) -> Tensor:
        tokens = tokens.to(device)
        with computing_in(dtype, device):
            hidden = model.hidden(tokens[:, :-1])[:, first:]
            return token_losses(hidden, model.token_embedding.weight, tokens[:, 1 + first :])

    return losses


@dataclass
class Cost:
    """What reading took.

    Attributes:
        seconds: of wall time.
        memory: bytes, the most that was held at once: on a GPU by PyTorch, else by this process.
        held: bytes before it began.
    """

    seconds: float = 0.0
    memory: int = 0
    held: int = field(default=0, repr=False)


Within = Callable[[int], contextlib.AbstractContextManager[object]]
"""What a context length is read within, such as a scaling of rotary positions."""


@dataclass(frozen=True)
class Reader:
    """A model that reads windows.

    Attributes:
        losses: of the model.
        batch_tokens: read at once, or a window where it is longer.
        capacity: of learned positions; beyond it the model is undefined.
        advance: is told of tokens that have been read.
    """

    losses: Losses
    device: torch.device
    batch_tokens: int
    capacity: int | None = None
    within: Within = lambda _: contextlib.nullcontext()
    advance: Callable[[int], object] = lambda _: None

    def is_defined(self, length: int) -> bool:
        """Whether the model knows so many positions."""
        return self.capacity is None or length <= self.capacity

    def read(self, text: Text, windows: Sequence[Window], n_targets: int, length: int) -> tuple[np.ndarray, Cost]:
        """Losses of all targets, `(target,)`, float32, in nats, each window's at its place; and what that took.

        Windows of about one size are read together, filled up at their ends, where no target that counts can see it.
        """
        found = np.full(n_targets, np.nan, dtype=np.float32)
        with self.within(length), measured(self.device) as cost:
            for batch in batches(windows, self.batch_tokens):
                longest = max(window.size for window in batch)
                tokens = np.zeros((len(batch), longest + 1), dtype=np.int64)
                for row, window in zip(tokens, batch, strict=True):
                    row[: window.size + 1] = text.documents[window.document].read(window.start, window.size + 1)
                first = min(window.size - window.scored for window in batch)
                here = self.losses(torch.from_numpy(tokens), first).float().cpu().numpy()
                for row, window in zip(here, batch, strict=True):
                    scored = row[window.size - window.scored - first : window.size - first]
                    found[window.at : window.at + window.scored] = scored
                self.advance(sum(window.size for window in batch))
        return found, cost


def batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows to be read together, the longest first: what fits into memory is known at once."""
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
    """What is done within, measured; known when it ends."""
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        cost.held = torch.cuda.memory_allocated(device)
    else:
        with contextlib.suppress(OSError):  # Linux forgets a process's peak on request; elsewhere it never falls
            Path("/proc/self/clear_refs").write_text("5")
        cost.held = _peak()
    start = time.perf_counter()
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - start
    cost.memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak()


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def growth(lengths: Sequence[int], values: Sequence[float]) -> float:
    """The exponent k with which values grow as `length^k`: the slope of a line through their logarithms.

    NaN where there are fewer than two, or one is not positive.
    """
    if len(lengths) < 2 or min(values) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])

"""Rows whose next token is read by one function of static tensors, which a GPU replays as one CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptstar.inference.cuda_graph import CudaGraph
from gptstar.inference.rows import Prompts, Rows
from gptstar.model import GPT
from gptstar.model.view import Cache, View

BLOCK = 128
"""Columns are allocated in multiples of this, so that decodes of similar lengths have the same shapes."""

MOST_SHAPES = 64
"""Numbers of rows and of columns that a process may compile a step for; PyTorch's own limit is 8."""


class StaticCache(Cache):
    """A cache whose tensors never change shape or address, so that a CUDA graph can write to it.

    It starts as a `Cache` does, and reads the prompts. After `fix` each layer adds one token at a time, at a place that
    a tensor holds, and gets the whole capacity: the mask hides the places that are still empty.
    """

    _place: Tensor | None = None

    def fix(self, place: Tensor) -> None:
        """Write from now on at `place`, `(1,)`, int64, on the device; the caller moves it on."""
        self._place = place
        self._lengths = dict.fromkeys(self._memory, self._capacity)

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """As `Cache.extend`; after `fix` it returns the whole capacity."""
        if self._place is None:
            return super().extend(layer, key, value, *more)
        for memory, part in zip(self._memory[layer], (key, value, *more), strict=True):
            memory.index_copy_(2, self._place, part.to(memory.dtype))
        return tuple(self._memory[layer])

    def _allocate(self, like: Tensor, n_tokens: int, dtype: torch.dtype) -> Tensor:
        assert n_tokens <= self._capacity
        return super()._allocate(like, n_tokens, dtype).zero_()  # a hidden place has weight 0, and 0 times NaN is NaN


class StaticRows(Rows):
    """Rows for a GPU: every step has the same shapes, and is launched at once.

    Prompts are read as `Rows` reads them. Then a step attends to all allocated columns, and a mask hides those that are
    not yet written. The caller need not wait for a step before it starts the next one. Rows that have ended are read on
    until half of the rows have ended: dropping them means recording the graph again.

    Args:
        model, prompts, capacity: as `Rows` takes them.
        compiled: compile the step, too.
    """

    is_ahead = True
    cache_class = StaticCache
    _cache: StaticCache

    def __init__(self, model: GPT, prompts: Prompts, capacity: int, *, compiled: bool = False) -> None:
        super().__init__(model, prompts, -(-capacity // BLOCK) * BLOCK)
        n_columns, n_ctx = self._column.shape[1], model.config.positions.capacity
        self._longest = n_columns if n_ctx is None else min(n_columns, n_ctx)
        self._compiled = compiled

    def read_prompts(self, tokens: Tensor) -> Tensor:
        """As `Rows.read_prompts`."""
        logits = super().read_prompts(tokens)
        self._tokens = tokens[:, -1].clone()  # (row,): the step's input
        self._place = torch.tensor([self._length], device=self.device)  # (1,): the column of the step's token
        self._cache.fix(self._place)
        self._prepare()
        return logits

    def _prepare(self) -> None:
        step = _compiled(self.step) if self._compiled else self.step
        self._launch = CudaGraph(step, self.device) if self.device.type == "cuda" else step

    def read(self, tokens: Tensor) -> Tensor:
        """As `Rows.read`; on a GPU the next call overwrites the logits."""
        self._tokens.copy_(tokens)
        return self._launch()

    def step(self) -> Tensor:
        """Read the token of each row at the current column, move on to the next column, and return the logits."""
        here, written = self._positions.index_select(1, self._place), self._column <= self._place
        known = written if self._known is None else written & self._known
        view = View(here, self._positions, known[:, None], self._cache, self._longest)
        logits = self._model.logits(self._model.hidden(self._tokens[:, None], view)[:, -1])
        self._place.add_(1)
        return logits

    def is_worth_selecting(self, n_going: int, n_rows: int) -> bool:
        """As `Rows.is_worth_selecting`."""
        return 2 * n_going <= n_rows

    def select(self, rows: Tensor) -> None:
        """As `Rows.select`."""
        super().select(rows)
        self._tokens = self._tokens[rows]
        self._prepare()


def _compiled(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A compiled step, with products of one row as kernels of its own (`coordinate_descent_tuning`)."""
    compiled = torch.compile(step, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True})

    def limited() -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return compiled()

    return limited

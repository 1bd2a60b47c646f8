"""Rows whose step is a function of static tensors, which a GPU replays as one CUDA graph."""

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
"""Most shapes (rows and columns) for which a process may compile a step; PyTorch's own limit is 8."""


class StaticCache(Cache):
    """A cache whose tensors never change shape or address, so that a CUDA graph can write to it.

    It starts like a `Cache` and reads the prompts. After `fix`, each layer adds one token at a time, at the place in a
    tensor, and gets the whole capacity. The attention mask hides the places that are still empty.
    """

    _place: Tensor | None = None

    def fix(self, place: Tensor) -> None:
        """From now on, write at `place`, `(1,)`, int64, on the device; the caller advances it."""
        self._place = place
        self._lengths = dict.fromkeys(self._memory, self._capacity)

    def extend(self, layer: nn.Module, key: Tensor, value: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Do the same as `Cache.extend`, but return the whole capacity after `fix`."""
        if self._place is None:
            return super().extend(layer, key, value, *more)
        for memory, part in zip(self._memory[layer], (key, value, *more), strict=True):
            memory.index_copy_(2, self._place, part.to(memory.dtype))
        return tuple(self._memory[layer])

    def _allocate(self, like: Tensor, n_tokens: int, dtype: torch.dtype) -> Tensor:
        assert n_tokens <= self._capacity
        return super()._allocate(like, n_tokens, dtype).zero_()  # hidden places have weight 0, but 0 times NaN is NaN


class StaticRows(Rows):
    """Rows for a GPU: every step has the same shapes, and is one launch.

    Prompts are read as in `Rows`. Then each step attends to all allocated columns, and a mask hides those that are not
    yet written. The caller need not wait for a step before starting the next one. Ended rows are still computed until
    half of the rows have ended, because dropping rows requires recording the graph again.

    Args:
        model, prompts, capacity: as in `Rows`.
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
        """Do the same as `Rows.read_prompts`."""
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
        """Do the same as `Rows.read`; on a GPU, the next call overwrites the logits."""
        self._tokens.copy_(tokens)
        return self._launch()

    def step(self) -> Tensor:
        """Read each row's token at the current column, advance to the next column, and return the logits."""
        here, written = self._positions.index_select(1, self._place), self._column <= self._place
        known = written if self._known is None else written & self._known
        view = View(here, self._positions, known[:, None], self._cache, self._longest)
        logits = self._model.logits(self._model.hidden(self._tokens[:, None], view)[:, -1])
        self._place.add_(1)
        return logits

    def is_worth_selecting(self, n_going: int, n_rows: int) -> bool:
        """Return whether at least half of the rows have ended."""
        return 2 * n_going <= n_rows

    def select(self, rows: Tensor) -> None:
        """Do the same as `Rows.select`."""
        super().select(rows)
        self._tokens = self._tokens[rows]
        self._prepare()


def _compiled(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Compile a step, with generated kernels for products of one row (`coordinate_descent_tuning`)."""
    compiled = torch.compile(step, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True})

    def limited() -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return compiled()

    return limited

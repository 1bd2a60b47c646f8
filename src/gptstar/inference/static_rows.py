"""Rows whose next token is read by one function of static tensors, which a GPU replays as one CUDA graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptstar.inference.cuda_graph import CudaGraph
from gptstar.inference.rows import Rows, Tokens
from gptstar.inference.static_cache import StaticCache
from gptstar.model import GPT
from gptstar.model.view import View

BLOCK = 128
"""Columns are allocated in multiples of this, so that decodes of similar lengths have the same shapes."""

MOST_SHAPES = 64
"""Numbers of rows and of columns that a process may compile a step for; PyTorch's own limit is 8."""


class StaticRows(Rows):
    """Rows for a GPU: every step has the same shapes, and is launched at once.

    Prompts are read as `Rows` reads them. Then a step attends to all allocated columns, and a mask hides those that are
    not yet written. The caller need not wait for a step before it starts the next one. Rows that have ended are read on
    until half of the rows have ended: dropping them means recording the graph again.
    """

    is_ahead = True

    def __init__(
        self, model: GPT, prompts: Sequence[Tokens] | Tensor, capacity: int, *, compiled: bool = False
    ) -> None:
        """Prepare to read.

        Args:
            model, prompts, capacity: as `Rows` takes them.
            compiled: compile the step, too.
        """
        super().__init__(model, prompts, -(-capacity // BLOCK) * BLOCK)
        n_columns, n_ctx = self._column.shape[1], model.config.positions.capacity
        self._longest = n_columns if n_ctx is None else min(n_columns, n_ctx)
        self._compiled = compiled

    def _new_cache(self, capacity: int, dtype: torch.dtype | None) -> StaticCache:
        return StaticCache(capacity, dtype)

    def read_prompts(self, tokens: Tensor) -> Tensor:
        """As `Rows.read_prompts`."""
        logits = super().read_prompts(tokens)
        self._tokens = tokens[:, -1].clone()  # (row,): the step's input
        self._place = torch.tensor([self._length], device=self.device)  # (1,): the column of the step's token
        assert isinstance(self._cache, StaticCache)
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
        view = View(here, self._positions, known[:, None], self._cache, length=self._longest)
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

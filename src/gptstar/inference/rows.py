"""Batches of texts that a model reads with a KV cache: prompts in large pieces, then one token per row and step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gptstar.inference.memory import MASK_CELL, activation_bytes, cache_bytes, usable_bytes
from gptstar.model import GPT, GPTConfig
from gptstar.model.view import Cache, View

Prompts = Sequence[Sequence[int] | np.ndarray | Tensor] | Tensor
"""Prompt tokens, at least one per prompt: arrays `(position,)`, or one array `(row, position)`."""

PIECE = 1024
"""Tokens per prompt that a CPU reads at once, so that the mask doesn't grow with the square of the length."""

LARGEST_PIECE = 8192
"""Most tokens per prompt that a GPU reads at once, if they fit its memory."""


class Rows:
    """Rows that end at the same column, so that all write to the same place of the KV cache.

    Shorter prompts are padded on the left. This class is for a CPU: each step attends to exactly the tokens read so
    far, and rows that have ended are dropped.

    Args:
        model: in eval mode.
        capacity: number of columns to allocate.

    Attributes:
        is_ahead: whether `read` returns before the device has finished, so that the next token can be read before the
            caller knows the last one.
    """

    is_ahead = False
    cache_class = Cache

    def __init__(self, model: GPT, prompts: Prompts, capacity: int) -> None:
        self.device, longest = model.token_embedding.weight.device, max(map(len, prompts))
        self._model, self._length = model, 0
        # A CPU multiplies vectors in float32 as fast as in bfloat16.
        self._cache = self.cache_class(capacity, torch.float32 if self.device.type == "cpu" else None)
        self._column = torch.arange(capacity, device=self.device)[None]
        begins = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.device)[:, None]
        if len(set(map(len, prompts))) > 1:
            self._positions = (self._column - begins).clamp_(min=0)  # (row, column)
            self._known: Tensor | None = self._column >= begins  # (row, column): False for padding
        else:
            self._positions, self._known = self._column, None

    def read_prompts(self, tokens: Tensor) -> Tensor:
        """Read the padded prompts `(row, column)`, and return the logits after the last column, `(row, n_vocab)`."""
        n_rows, width = tokens.shape
        piece = self._piece(n_rows, width)
        for start in range(0, width, piece):
            stop = min(start + piece, width)
            mask = None
            if self._known is not None:
                columns = self._column[0, :stop]
                causal = columns[start:, None] >= columns
                itself = (
                    columns[start:, None] == columns
                )  # padding attends to itself, because a softmax needs at least one key
                mask = causal & self._known[:, None, :stop] | itself
            # All pieces except the last only fill the KV cache.
            selected = tokens.new_tensor([stop - start - 1] if stop == width else [])
            hidden = self._read(tokens[:, start:stop], mask, selected.expand(n_rows, -1))
        return self._model.logits(hidden[:, -1])

    def _piece(self, n_rows: int, width: int) -> int:
        if self.device.type != "cuda":
            return PIECE
        config, itemsize = self._model.config, self._model.token_embedding.weight.itemsize
        room = usable_bytes(self.device) - n_rows * self._column.shape[1] * cache_bytes(config, itemsize)
        return piece_for(config, n_rows, width, room, itemsize=itemsize, is_padded=self._known is not None)

    def read(self, tokens: Tensor) -> Tensor:
        """Read one token per row, `(row,)`, and return the next logits, `(row, n_vocab)`."""
        mask = None if self._known is None else self._known[:, None, : self._length + 1]
        return self._model.logits(self._read(tokens[:, None], mask)[:, -1])

    def _read(self, tokens: Tensor, mask: Tensor | None, selected: Tensor | None = None) -> Tensor:
        start, self._length = self._length, self._length + tokens.shape[1]
        keys = self._positions[:, : self._length]
        return self._model.hidden(tokens, View(keys[:, start:], keys, mask, self._cache, self._length), selected)

    def is_worth_selecting(self, n_going: int, n_rows: int) -> bool:
        """Return whether to drop ended rows, if `n_going` of `n_rows` continue."""
        return n_going < n_rows

    def select(self, rows: Tensor) -> None:
        """Keep only these rows: `(row,)`, int64."""
        self._cache.select(rows)
        if self._known is not None:
            self._positions, self._known = self._positions[rows], self._known[rows]


def piece_for(config: GPTConfig, n_rows: int, width: int, room: int, *, itemsize: int, is_padded: bool) -> int:
    """Return how many tokens of each prompt to read at once on a GPU: a power of two, at least 64.

    Args:
        width: number of columns of the prompts.
        room: most bytes to use.
        itemsize: bytes per value.
        is_padded: whether the prompts have different lengths. If so, each piece needs a mask `(row, head, piece,
            width)`. Otherwise only pieces after the first need a mask, which all rows share.
    """
    piece = LARGEST_PIECE
    while piece > 64:
        masked_rows = n_rows if is_padded else int(width > piece)
        cells = masked_rows * config.n_heads * piece * width
        if n_rows * piece * activation_bytes(config, itemsize) + cells * MASK_CELL <= room:
            break
        piece //= 2
    return piece

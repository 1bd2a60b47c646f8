"""Many prompts continued at once: each token is read once, its keys and values kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptstar.errors import ConfigError
from gptstar.inference.sampling import GREEDY, Sampling, next_token
from gptstar.model import GPT
from gptstar.model.view import Cache, View

Tokens = Sequence[int] | np.ndarray | Tensor
"""A prompt's: `(position,)`."""

PIECE = 1024
"""Tokens of each prompt read at once: a longer one takes a mask in proportion to its length, not to its square."""


@dataclass(frozen=True)
class Step:
    """The next token of each text that goes on.

    Attributes:
        numbers: which prompts they continue.
        tokens: one of each text.
        log_probabilities: of the tokens, in nats, as the model has them before anything is filtered; None unless asked.
        likeliest: tokens and log-probabilities of the likeliest; None unless asked.
    """

    numbers: list[int]
    tokens: list[int]
    log_probabilities: list[float] | None = None
    likeliest: list[list[tuple[int, float]]] | None = None


def decode(
    model: GPT,
    prompts: Sequence[Tokens] | Tensor,
    n_new: int,
    *,
    sampling: Sampling = GREEDY,
    ended: Callable[[Sequence[int]], bool] | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """Continue prompts of any lengths, and return the continuation of each, without the prompt.

    Args:
        ended: whether a continuation is complete, given its tokens so far; asked after each.
        model, prompts, n_new, sampling, numbers: as `steps`, which says what is raised.
    """
    continuations: list[list[int]] = [[] for _ in prompts]
    for step in steps(
        model,
        prompts,
        n_new,
        sampling=sampling,
        ended=ended and (lambda number: ended(continuations[number])),
        numbers=numbers,
    ):
        for number, token in zip(step.numbers, step.tokens, strict=True):
            continuations[number].append(token)
    return continuations


@torch.inference_mode()
def steps(
    model: GPT,
    prompts: Sequence[Tokens] | Tensor,
    n_new: int,
    *,
    sampling: Sampling = GREEDY,
    ended: Callable[[int], bool] | None = None,
    numbers: Sequence[int] | None = None,
    n_likeliest: int | None = None,
) -> Iterator[Step]:
    """Continue prompts of any lengths, a token at a time; a row that has ended costs nothing more.

    What a prompt becomes does not depend on the others but for rounding.

    Args:
        model: in eval mode.
        prompts: each of one token at least.
        n_new: tokens to add at most.
        ended: whether the continuation of this prompt is complete; asked after each step, when its taker is done.
        numbers: of the prompts, to be drawn by; 0, 1, 2 … unless given.
        n_likeliest: so many of the likeliest are told with each token, and its log-probability; None tells nothing.

    Raises:
        ConfigError: a prompt without tokens, or learned positions and more tokens than their capacity.
    """
    _check(model, prompts, n_new)
    if n_new == 0 or len(prompts) == 0:
        return
    device = model.token_embedding.weight.device
    uniforms = sampling.uniforms(range(len(prompts)) if numbers is None else numbers, n_new).to(device)
    # Prompts end together: what fills the shorter ones up stands before them.
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.as_tensor(prompt)
    rows = _Rows(model, prompts, width + n_new - 1)
    had = _had(model, prompts) if sampling.repetition_penalty != 1.0 else None
    hidden = rows.read_prompts(tokens.to(device))
    going = list(range(len(prompts)))  # those that are not complete
    for place in range(n_new):
        logits = model.logits(hidden)
        chosen = next_token(logits, uniforms[:, place : place + 1].flatten(), sampling, had)  # (row,)
        told = (None, None) if n_likeliest is None else _told(logits, chosen, n_likeliest)
        yield Step(going, chosen.tolist(), *told)
        if place == n_new - 1:
            return
        if had is not None:
            had.scatter_(1, chosen[:, None], True)  # PyTorch takes it by place only
        if ended is not None:
            kept = [row for row, number in enumerate(going) if not ended(number)]
            if not kept:
                return
            if len(kept) < len(going):
                going, which = [going[row] for row in kept], torch.tensor(kept, device=device)
                rows.select(which)
                chosen, uniforms = chosen[which], uniforms[which]
                had = None if had is None else had[which]
        hidden = rows.read(chosen)


def _had(model: GPT, prompts: Sequence[Tokens] | Tensor) -> Tensor:
    """What each prompt holds: `(row, n_vocab)`, bool."""
    weight = model.token_embedding.weight
    had = torch.zeros(len(prompts), len(weight), dtype=torch.bool, device=weight.device)
    for row, prompt in zip(had, prompts, strict=True):
        row[torch.as_tensor(prompt, dtype=torch.int64, device=weight.device)] = True
    return had


def _told(logits: Tensor, chosen: Tensor, n_likeliest: int) -> tuple[list[float], list[list[tuple[int, float]]]]:
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    values, tokens = log_probabilities.topk(min(n_likeliest, logits.shape[-1]))
    pairs = [list(zip(*row, strict=True)) for row in zip(tokens.tolist(), values.tolist(), strict=True)]
    return log_probabilities.gather(1, chosen[:, None])[:, 0].tolist(), pairs


def _check(model: GPT, prompts: Sequence[Tokens] | Tensor, n_new: int) -> None:
    if n_new < 0:
        raise ConfigError(f"n_new={n_new} is negative")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ConfigError("a prompt has no tokens: give one at least, such as the one that ends a text")
    capacity, longest = model.config.n_ctx, max(map(len, prompts), default=0)
    if capacity is not None and longest + n_new - 1 > capacity:  # the last one is not read
        raise ConfigError(
            f"a prompt of {longest} tokens and {n_new} new ones exceed model.n_ctx={capacity}; learned positions can't "
            "extrapolate: shorten the prompt or ask for fewer"
        )


class _Rows:
    """What rows have read so far; they end together, so that all write to one place of the cache."""

    def __init__(self, model: GPT, prompts: Sequence[Tokens] | Tensor, capacity: int) -> None:
        device, longest = model.token_embedding.weight.device, max(map(len, prompts))
        self._model, self._length = model, 0
        # A CPU multiplies vectors in float32 as fast as in bfloat16.
        self._cache = Cache(capacity, torch.float32 if device.type == "cpu" else None)
        self._column = torch.arange(capacity, device=device)[None]
        begins = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)[:, None]
        if bool(begins.any()):
            self._positions = (self._column - begins).clamp_(min=0)  # (row, column)
            self._known: Tensor | None = self._column >= begins  # (row, column): all but what fills up
        else:
            self._positions, self._known = self._column, None

    def read_prompts(self, tokens: Tensor) -> Tensor:
        """`(row, column)` → the output at the last column, `(row, d_model)`."""
        n_rows, width = tokens.shape
        for start in range(0, width, PIECE):
            stop = min(start + PIECE, width)
            seen = None
            if self._known is not None:
                columns = self._column[0, :stop]
                after = columns[start:, None] >= columns
                itself = columns[start:, None] == columns  # a softmax needs something, and nobody sees the outcome
                seen = after & self._known[:, None, :stop] | itself
            last = tokens.new_tensor([stop - start - 1] if stop == width else [])  # else the cache is all we need
            hidden = self._read(tokens[:, start:stop], seen, last.expand(n_rows, -1))
        return hidden[:, -1]

    def read(self, tokens: Tensor) -> Tensor:
        """Read a token of each row: `(row,)` → `(row, d_model)`."""
        seen = None if self._known is None else self._known[:, None, : self._length + 1]
        return self._read(tokens[:, None], seen)[:, -1]

    def _read(self, tokens: Tensor, seen: Tensor | None, wanted: Tensor | None = None) -> Tensor:
        start, self._length = self._length, self._length + tokens.shape[1]
        keys = self._positions[:, : self._length]
        return self._model.hidden(tokens, View(keys[:, start:], keys, seen, self._cache), wanted)

    def select(self, rows: Tensor) -> None:
        """Go on with these alone."""
        self._cache.select(rows)
        if self._known is not None:
            self._positions, self._known = self._positions[rows], self._known[rows]

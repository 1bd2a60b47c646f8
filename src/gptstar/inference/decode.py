"""Batched decoding with a KV cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptstar.errors import ConfigError
from gptstar.inference.rows import Rows, Tokens
from gptstar.inference.sampling import GREEDY, Sampling, next_token
from gptstar.inference.static_rows import StaticRows
from gptstar.inference.transfer import HostCopy
from gptstar.model import GPT


@dataclass(frozen=True)
class Step:
    """The next token of each text that goes on.

    Attributes:
        numbers: the prompts that the tokens continue.
        tokens: one token of each text.
        log_probabilities: of the tokens, in nats, before any filter; None unless `n_likeliest` is given.
        likeliest: the likeliest tokens and their log-probabilities; None unless `n_likeliest` is given.
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
    compiled: bool = False,
) -> list[list[int]]:
    """Continue prompts of any lengths, and return the continuation of each, without the prompt.

    Args:
        ended: says whether a continuation is complete, given its tokens so far; called after each token.
        model, prompts, n_new, sampling, numbers, compiled: as `steps`, which lists the errors.
    """
    continuations: list[list[int]] = [[] for _ in prompts]
    for step in steps(
        model,
        prompts,
        n_new,
        sampling=sampling,
        ended=ended and (lambda number: ended(continuations[number])),
        numbers=numbers,
        compiled=compiled,
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
    compiled: bool = False,
) -> Iterator[Step]:
    """Continue prompts of any lengths, one token of each at a time.

    The continuation of a prompt does not depend on the other prompts, except for rounding.

    Args:
        model: in eval mode.
        prompts: each has at least one token.
        n_new: tokens to add at most.
        ended: says whether the continuation of this prompt is complete; called after the caller has used a step.
        numbers: seeds of the prompts' draws; 0, 1, 2 … by default.
        n_likeliest: report the log-probability of each token and this many of the likeliest; None reports nothing.
        compiled: compile the step, on a GPU only. That takes up to a minute for each number of rows and each multiple
            of 128 tokens, so it pays for a demo or for thousands of tokens, not for 200.

    Raises:
        ConfigError: a prompt has no tokens, or learned positions hold fewer tokens than this needs.
    """
    _check(model, prompts, n_new)
    if n_new == 0 or len(prompts) == 0:
        return
    device = model.token_embedding.weight.device
    uniforms = sampling.uniforms(range(len(prompts)) if numbers is None else numbers, n_new).to(device)
    rows = _rows_for(model, prompts, n_new, compiled)
    previous = _previous_tokens(model, prompts) if sampling.repetition_penalty != 1.0 else None
    logits = rows.read_prompts(_padded(prompts).to(device))
    # A row's number, or None once its text is complete: it may be read on, and what it says is dropped.
    going: list[int | None] = list(range(len(prompts)))
    for place in range(n_new):
        chosen = next_token(logits, uniforms[:, place : place + 1].flatten(), sampling, previous)  # (row,)
        answer = _answer(chosen, logits, n_likeliest)
        if previous is not None:
            previous.scatter_(1, chosen[:, None], True)  # PyTorch takes the value by position only
        is_last = place == n_new - 1
        if rows.is_ahead and not is_last:
            logits = rows.read(chosen)
        yield _step(answer, going)
        if is_last:
            return
        if ended is not None:
            going = [number if number is None or not ended(number) else None for number in going]
            kept = [row for row, number in enumerate(going) if number is not None]
            if not kept:
                return
            if rows.is_worth_selecting(len(kept), len(going)):
                going, which = [going[row] for row in kept], torch.tensor(kept, device=device)
                chosen, uniforms, logits = chosen[which], uniforms[which], logits[which]
                previous = None if previous is None else previous[which]
                rows.select(which)
        if not rows.is_ahead:
            logits = rows.read(chosen)


def _answer(chosen: Tensor, logits: Tensor, n_likeliest: int | None) -> HostCopy:
    """Start to copy the chosen tokens; with `n_likeliest` also their log-probabilities, and tokens and values of those.

    Args:
        chosen: `(row,)`, int64.
        logits: `(row, n_vocab)`.
    """
    if n_likeliest is None:
        return HostCopy(chosen)
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    likeliest = log_probabilities.topk(min(n_likeliest, logits.shape[-1]))
    return HostCopy(chosen, log_probabilities.gather(1, chosen[:, None])[:, 0], likeliest.indices, likeliest.values)


def _step(answer: HostCopy, going: Sequence[int | None]) -> Step:
    """Wait for an answer, and return the step of the texts that go on.

    Args:
        going: of each row the number of its text, or None.
    """
    rows = [row for row, number in enumerate(going) if number is not None]
    numbers = [number for number in going if number is not None]
    tokens, *reported = [[part[row] for row in rows] for part in map(Tensor.tolist, answer.wait())]
    if not reported:
        return Step(numbers, tokens)
    log_probabilities, likeliest, values = reported
    pairs = [list(zip(*row, strict=True)) for row in zip(likeliest, values, strict=True)]
    return Step(numbers, tokens, log_probabilities, pairs)


def _rows_for(model: GPT, prompts: Sequence[Tokens] | Tensor, n_new: int, compiled: bool) -> Rows:
    capacity = max(map(len, prompts)) + n_new - 1  # the last token is not read
    if model.token_embedding.weight.is_cuda:
        return StaticRows(model, prompts, capacity, compiled=compiled)
    return Rows(model, prompts, capacity)


def _padded(prompts: Sequence[Tokens] | Tensor) -> Tensor:
    """Prompts as one tensor `(row, column)`; they end at the same column."""
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.as_tensor(prompt)
    return tokens


def _previous_tokens(model: GPT, prompts: Sequence[Tokens] | Tensor) -> Tensor:
    """Which tokens each prompt contains: `(row, n_vocab)`, bool."""
    weight = model.token_embedding.weight
    previous = torch.zeros(len(prompts), len(weight), dtype=torch.bool, device=weight.device)
    for row, prompt in zip(previous, prompts, strict=True):
        row[torch.as_tensor(prompt, dtype=torch.int64, device=weight.device)] = True
    return previous


def _check(model: GPT, prompts: Sequence[Tokens] | Tensor, n_new: int) -> None:
    if n_new < 0:
        raise ConfigError(f"n_new={n_new} is negative")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ConfigError("a prompt has no tokens: give one at least, such as the one that ends a text")
    capacity, longest = model.config.positions.capacity, max(map(len, prompts), default=0)
    if capacity is not None and longest + n_new - 1 > capacity:  # the last one is not read
        raise ConfigError(
            f"a prompt of {longest} tokens and {n_new} new ones exceed model.n_ctx={capacity}; its positions can't "
            "extrapolate: shorten the prompt or ask for fewer"
        )

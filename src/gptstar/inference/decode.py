"""Batched decoding with a KV cache."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptstar.errors import CheckpointError, ConfigError
from gptstar.inference.rows import Prompts, Rows
from gptstar.inference.sampling import GREEDY, Sampling, next_token
from gptstar.inference.static_rows import StaticRows
from gptstar.inference.transfer import HostCopy
from gptstar.model import GPT


@dataclass(frozen=True)
class Drawn:
    """A generated token.

    Attributes:
        number: number of the text, by its prompt.
        token: number of the token in the vocabulary.
        log_probability: the token's log-probability in nats, before any filter; None unless `n_likeliest` is given.
        likeliest: the likeliest tokens and their log-probabilities; empty unless `n_likeliest` is given.
    """

    number: int
    token: int
    log_probability: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


def decode(
    model: GPT, prompts: Prompts, n_new: int, *, ended: Callable[[Sequence[int]], bool] | None = None, **options: Any
) -> list[list[int]]:
    """Continue prompts of any lengths, and return the continuation of each, without the prompt.

    Args:
        ended: returns whether a continuation is complete, given its tokens so far; called after each token.
        options: `sampling`, `numbers`, `n_tokens` and `compiled`, as in `steps`, which also lists the errors.
    """
    continuations: list[list[int]] = [[] for _ in prompts]
    for step in steps(model, prompts, n_new, ended=ended and (lambda number: ended(continuations[number])), **options):
        for drawn in step:
            continuations[drawn.number].append(drawn.token)
    return continuations


@torch.inference_mode()
def steps(
    model: GPT,
    prompts: Prompts,
    n_new: int,
    *,
    sampling: Sampling = GREEDY,
    ended: Callable[[int], bool] | None = None,
    numbers: Sequence[int] | None = None,
    n_likeliest: int | None = None,
    n_tokens: int | None = None,
    compiled: bool = False,
) -> Iterator[list[Drawn]]:
    """Continue prompts of any lengths, yielding one token of each at a time.

    The continuation of a prompt does not depend on the other prompts, except for rounding.

    Args:
        model: in eval mode.
        prompts: each has at least one token.
        n_new: most tokens to generate.
        ended: returns whether the continuation of this prompt is complete; called after the caller used the step.
        numbers: seeds of the prompts' random numbers; by default 0, 1, 2 ….
        n_likeliest: report the log-probability of each token and this many of the likeliest; None reports nothing.
        n_tokens: number of tokens in the tokenizer, if the model's vocabulary is padded; None means all.
        compiled: compile the step, on a GPU only. This takes up to a minute for each number of rows and each multiple
            of 128 tokens, so it helps a demo or thousands of tokens, but not 200.

    Raises:
        ConfigError: a prompt has no tokens, or the text would exceed the capacity of learned positions.
        CheckpointError: logits are not finite.
    """
    _check(model, prompts, n_new)
    if n_new == 0 or len(prompts) == 0:
        return
    device = model.token_embedding.weight.device
    uniforms = sampling.uniforms(range(len(prompts)) if numbers is None else numbers, n_new).to(device)
    rows = _rows_for(model, prompts, n_new, compiled)
    previous = _previous_tokens(model, prompts) if sampling.repetition_penalty != 1.0 else None
    logits = rows.read_prompts(_padded(prompts).to(device))
    # Each row's text, or None once it is complete; the row may continue, but its tokens are dropped.
    texts: list[int | None] = list(range(len(prompts)))
    for place in range(n_new):
        had = None if previous is None else previous[:, :n_tokens]
        chosen = next_token(logits[:, :n_tokens], uniforms[:, place : place + 1].flatten(), sampling, had)  # (row,)
        copy = _to_host(chosen, logits, n_likeliest, n_tokens)
        if previous is not None:
            previous.scatter_(1, chosen[:, None], True)  # PyTorch accepts this argument by position only
        is_last = place == n_new - 1
        if rows.is_ahead and not is_last:
            logits = rows.read(chosen)
        yield _drawn(copy, texts)
        if is_last:
            return
        if ended is not None:
            texts = [number if number is None or not ended(number) else None for number in texts]
            going = [row for row, number in enumerate(texts) if number is not None]
            if not going:
                return
            if rows.is_worth_selecting(len(going), len(texts)):
                texts, selected = [texts[row] for row in going], torch.tensor(going, device=device)
                chosen, uniforms, logits = chosen[selected], uniforms[selected], logits[selected]
                previous = None if previous is None else previous[selected]
                rows.select(selected)
        if not rows.is_ahead:
            logits = rows.read(chosen)


def _to_host(chosen: Tensor, logits: Tensor, n_likeliest: int | None, n_tokens: int | None) -> HostCopy:
    """Start copying the chosen tokens `(row,)`, and the log-probabilities to report, from logits `(row, n_vocab)`."""
    total = logits.sum(dim=-1)  # finite if all logits are
    if n_likeliest is None:
        return HostCopy(chosen, total)
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    nameable = log_probabilities[:, :n_tokens]
    likeliest = nameable.topk(min(n_likeliest, nameable.shape[-1]))
    return HostCopy(
        chosen, total, log_probabilities.gather(1, chosen[:, None])[:, 0], likeliest.indices, likeliest.values
    )


def _drawn(copy: HostCopy, texts: Sequence[int | None]) -> list[Drawn]:
    """Wait for a copy, and return the tokens of rows whose text is incomplete."""
    drawn = []
    for number, token, total, *reported in zip(texts, *map(Tensor.tolist, copy.wait()), strict=True):
        if number is None:
            continue
        if not math.isfinite(total):
            raise CheckpointError(
                "the model's logits are not finite, so its weights are damaged or diverged: use another checkpoint"
            )
        if reported:
            log_probability, likeliest, values = reported
            drawn.append(Drawn(number, token, log_probability, tuple(zip(likeliest, values, strict=True))))
        else:
            drawn.append(Drawn(number, token))
    return drawn


def _rows_for(model: GPT, prompts: Prompts, n_new: int, compiled: bool) -> Rows:
    capacity = max(map(len, prompts)) + n_new - 1  # the last token is not read into the cache
    if model.token_embedding.weight.is_cuda:
        return StaticRows(model, prompts, capacity, compiled=compiled)
    return Rows(model, prompts, capacity)


def _padded(prompts: Prompts) -> Tensor:
    """Join prompts into one tensor `(row, column)`, padded on the left."""
    tokens = [torch.as_tensor(prompt, dtype=torch.int64) for prompt in prompts]
    return pad_sequence(tokens, batch_first=True, padding_side="left")


def _previous_tokens(model: GPT, prompts: Prompts) -> Tensor:
    """Return which tokens each prompt contains: `(row, n_vocab)`, bool."""
    weight = model.token_embedding.weight
    previous = torch.zeros(len(prompts), len(weight), dtype=torch.bool, device=weight.device)
    for row, prompt in zip(previous, prompts, strict=True):
        row[torch.as_tensor(prompt, dtype=torch.int64, device=weight.device)] = True
    return previous


def _check(model: GPT, prompts: Prompts, n_new: int) -> None:
    if n_new < 0:
        raise ConfigError(f"n_new={n_new} is negative: give 0 or more")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ConfigError("a prompt has no tokens: give at least one, such as end-of-text")
    capacity, longest = model.config.positions.capacity, max(map(len, prompts), default=0)
    if capacity is not None and longest + n_new - 1 > capacity:  # the last token is not read
        raise ConfigError(
            f"a prompt of {longest} tokens and {n_new} new ones exceed model.n_ctx={capacity}, the capacity of its "
            "positions: shorten the prompt, or generate fewer tokens"
        )

"""Many prompts continued at once: each token is read once, its keys and values kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptstar.model import GPT
from gptstar.model.view import Cache, View

Choose = Callable[[Tensor], Tensor]
"""From the next token's logits `(row, n_vocab)` to the tokens chosen, `(row, 1)`, int64."""


PIECE = 512
"""Tokens of a prompt read at once: a longer one takes a mask in proportion to its length, not to its square."""


@torch.inference_mode()
def decode(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    choose: Choose,
    ended: Callable[[Sequence[int]], bool],
) -> list[list[int]]:
    """Continue prompts of any lengths; a row that has ended costs nothing more.

    Args:
        model: in eval mode.
        prompts: each of one token at least.
        n_new: tokens to add at most.
        choose: the next token of each row.
        ended: whether a continuation is complete, given its tokens so far; asked after each.

    Returns:
        The continuation of each prompt, without the prompt.

    Raises:
        ConfigError: learned positions, and more tokens than their capacity.
    """
    device = model.token_embedding.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
    at = torch.arange(width, device=device)[None]  # one mask for all rows: what pads a row comes after its end
    cache = Cache()
    last = torch.empty(len(prompts), model.config.d_model, device=device)
    for start in range(0, width, PIECE):
        queries, keys = at[:, start : start + PIECE], at[:, : start + PIECE]
        hidden = model.hidden(tokens[:, start : start + PIECE], View(queries, keys, queries[..., None] >= keys, cache))
        here = (lengths > start) & (lengths <= start + PIECE)  # rows that end in this piece
        last[here] = hidden[here, lengths[here] - 1 - start].to(last.dtype)

    continuations: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those that go on
    keys = at.expand(len(prompts), -1)  # (row, key)
    known = keys < lengths[:, None]  # (row, key): all but what pads the prompts
    for step in range(n_new):
        chosen = choose(model.logits(last))  # (row, 1)
        for row, token in zip(rows, chosen.flatten().tolist(), strict=True):
            continuations[row].append(token)
        going = [number for number, row in enumerate(rows) if not ended(continuations[row])]
        if not going or step == n_new - 1:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            cache.select(kept)
            rows, lengths, keys, known = [rows[number] for number in going], lengths[kept], keys[kept], known[kept]
            chosen = chosen[kept]
        queries = (lengths + step)[:, None]  # (row, 1)
        keys = torch.cat((keys, queries), dim=1)
        known = torch.cat((known, torch.ones_like(queries, dtype=torch.bool)), dim=1)
        last = model.hidden(chosen, View(queries, keys, known[:, None], cache))[:, -1]
    return continuations

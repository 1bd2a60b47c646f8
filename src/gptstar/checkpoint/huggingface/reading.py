"""Attention masks and positions for transformers, prepared once for all layers of a forward pass.

gptstar copies this file into exported folders, next to the modelling file.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gptstar.model.positions.base import Pairs


@dataclass(eq=False)
class Reading:
    """The values that all layers share in a forward pass.

    Attributes:
        at: `(batch or 1, query)`, int64: positions of the tokens to read.
        pairs: queries and keys; a query may attend to the tokens of its text up to itself.
        visible: `(batch or 1, query, key)`, bool: the attention mask; None if PyTorch needs no explicit mask.
        n_keys: `(batch or 1, query)`, int64: the number of keys that each query attends to.
        is_causal: whether PyTorch's own causal mask is sufficient.
        bias: `(batch or 1, head, query, key)`, float32: the positions' addition to scores, if all layers share it.
        parameters: parameters of the positions that layers share.
        cache: the cache of transformers, or None.
    """

    at: Tensor
    pairs: Pairs
    visible: Tensor | None
    n_keys: Tensor
    is_causal: bool
    bias: Tensor | None
    parameters: nn.Module | None
    cache: Any


def reading_of(
    model: Any, x: Tensor, past: int, mask: Tensor | None, position_ids: Tensor | None, cache: Any
) -> Reading:
    """Prepare the values that all layers share.

    Args:
        x: `(batch, query, d_model)`, embedded tokens.
        past: number of tokens in the cache.
        mask, position_ids: as the model's `forward` takes them.
    """
    kind, within, n_keys = model.positions, model.config.mask(), past + x.shape[1]
    parameters = None if kind.per_layer else model._modules.get(kind.name_in_model)
    slots = torch.arange(n_keys, device=x.device)
    allowed, positions = None, slots[None]  # (batch or 1, query or 1, key); (batch or 1, key)
    if mask is not None and mask.ndim == 4:
        allowed = _allowed(mask)[:, :, :n_keys]
    elif mask is not None and not bool(mask.all()):
        padding = mask[:, :n_keys].bool()
        allowed, positions = padding[:, None], (padding.cumsum(1) - 1).clamp(min=0)
    if position_ids is not None and not bool((position_ids == positions[:, past:]).all()):
        before = positions[:, :past]
        if mask is None or mask.ndim == 4:  # the cached tokens precede these
            before = position_ids[:, :1] - past + slots[:past]
        rows = max(len(before), len(position_ids))
        positions = torch.cat((before.expand(rows, -1), position_ids.expand(rows, -1)), dim=1)
        if mask is None and past == 0:
            sequence = (position_ids.diff(dim=1) != 1).cumsum(1)
            sequence = pad(sequence, (1, 0))
            allowed = sequence[:, :, None] == sequence[:, None, :] if bool(sequence.any()) else None
    at, n_queries = positions[:, past:], n_keys - past
    cuts = within.hides(n_keys) or (within.window is not None and position_ids is not None)
    is_whole = allowed is None and not cuts
    if not kind.adds_bias and is_whole and (past == 0 or n_queries == 1):
        pairs, count = Pairs(at, positions), slots[None, past:] + 1
        return Reading(at, pairs, None, count, past == 0 and n_queries > 1, None, parameters, cache)
    text = (slots[past:, None] >= slots[None, :])[None]  # (1, query, key)
    if allowed is not None:
        itself = slots[past:, None] == slots[None, :]  # so that every query has at least one key
        is_given = mask is not None and mask.ndim == 4  # keep it, causal or not
        text = allowed | itself & ~allowed.any(-1, keepdim=True) if is_given else text & allowed | itself
    pairs, bias = Pairs(at, positions, text), None
    visible = text & within.visible(at, positions) if cuts else text
    if kind.adds_bias and not kind.per_layer and not kind.reads_input:
        bias = kind.bias(pairs, model.config.n_heads, parameters, None)
        bias = bias.masked_fill(~visible[:, None], -torch.inf)
    return Reading(at, pairs, visible, visible.sum(-1), False, bias, parameters, cache)


def _allowed(mask: Tensor) -> Tensor:
    """Convert a mask `(batch, 1, query, key)` to the allowed keys of each query, `(batch, query, key)`, bool."""
    if mask.shape[1] != 1:
        raise ValueError(
            f"an attention_mask of shape {tuple(mask.shape)} has one mask per head: give one mask for all heads"
        )
    if mask.dtype == torch.bool:
        return mask[:, 0]
    hides = mask <= -1e4
    if not mask.is_floating_point() or not bool((hides | (mask == 0)).all()):
        raise ValueError("an attention_mask of four axes must hold True and False, or 0 and the dtype's lowest number")
    return ~hides[:, 0]

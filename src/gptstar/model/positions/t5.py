"""T5's relative positions: a learned bias for each bucket of distances."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from gptstar.model.positions.base import Positions, Sizes

BUCKETS = 32
EXACT = BUCKETS // 2
"""Distances below have a bucket each."""

FARTHEST = 128
"""Distances from here on share the last bucket."""


def _edges() -> tuple[int, ...]:
    """The first distance of each bucket from `EXACT` on.

    Bucket 16 + k begins at the least d with `16 * ln(d / 16) / ln(128 / 16) >= k`, which is `d^16 >= 16^(16 - k) *
    128^k`: whole numbers, which no logarithm rounds.
    """
    steps = BUCKETS - EXACT
    bounds = (EXACT ** (steps - k) * FARTHEST**k for k in range(steps))
    return tuple(next(d for d in range(EXACT, FARTHEST) if d**steps >= bound) for bound in bounds)


EDGES = _edges()


@dataclass(frozen=True)
class T5(Positions):
    """A score gets a learned number by head and bucket of the distance; all layers share the table.

    The bucket is the distance d itself below 16, else `min(31, 16 + floor(16 * ln(d / 16) / ln(8)))`. Scores are
    divided by `sqrt(d_head)` as those of other kinds are; T5 itself does not divide them. No weight decay.

    FlexAttention reads it as a table, without gradients.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
    section 2.1, and the authors' code for attention to earlier tokens only.
    """

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make the table: `(bucket, head)`."""
        return nn.Embedding(BUCKETS, sizes.n_heads)

    def by_distance(self, distance: Tensor, n_heads: int, parameters: nn.Module | None) -> Tensor:
        """Look the bucket's number up."""
        assert isinstance(parameters, nn.Embedding)
        found = embedding(buckets(distance), parameters.weight.float())  # whose gradient is summed in a fixed order
        return found.movedim(-1, 0)


def buckets(distance: Tensor) -> Tensor:
    """The bucket of each distance, int64, 0 or more; the result has its shape."""
    far = torch.arange(FARTHEST, device=distance.device)  # the last of them is in the last bucket
    numbers = far.clamp(max=EXACT - 1)
    for edge in EDGES:
        numbers = numbers + (far >= edge)
    return numbers[distance.clamp(max=FARTHEST - 1)]

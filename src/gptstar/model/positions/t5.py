"""T5's relative positions: a learned bias for each bucket of distances."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from gptstar.model.positions.base import Positions, Sizes

BUCKETS = 32
EXACT = BUCKETS // 2
"""Each distance below this one has its own bucket."""

FARTHEST = 128
"""All distances from this one on share the last bucket."""


def _edges() -> tuple[int, ...]:
    """Return the first distance of each bucket that holds several distances, that is, of bucket `EXACT` and later ones.

    Bucket 16 + k begins at the smallest d with `16 * ln(d / 16) / ln(128 / 16) >= k`. That is `d^16 >= 16^(16 - k) *
    128^k`, which integers compute without rounding.
    """
    steps = BUCKETS - EXACT
    bounds = (EXACT ** (steps - k) * FARTHEST**k for k in range(steps))
    return tuple(next(d for d in range(EXACT, FARTHEST) if d**steps >= bound) for bound in bounds)


EDGES = _edges()


@dataclass(frozen=True)
class T5(Positions):
    """T5: attention adds a learned bias per head and bucket of distances to each score; all layers share the table.

    The bucket is the distance d itself below 16, otherwise `min(31, 16 + floor(16 * ln(d / 16) / ln(8)))`. As with all
    kinds here, scores are divided by `sqrt(d_head)`; T5 itself does not divide them. There is no weight decay.

    FlexAttention reads it as a table, without gradients.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
    section 2.1, and the authors' code for attention to earlier tokens only.
    """

    def parameters(self, sizes: Sizes) -> nn.Module:
        """Make the table of biases, `(bucket, head)`."""
        return nn.Embedding(BUCKETS, sizes.n_heads)

    def by_distance(self, distance: Tensor, n_heads: int, parameters: nn.Module | None) -> Tensor:
        """Look up the bias of each distance's bucket."""
        assert isinstance(parameters, nn.Embedding)
        biases = embedding(buckets(distance), parameters.weight.float())  # its gradient is summed in a fixed order
        return biases.movedim(-1, 0)


def buckets(distance: Tensor) -> Tensor:
    """Return the bucket of each distance, int64, 0 or more, in the shape of `distance`."""
    far = torch.arange(FARTHEST, device=distance.device)  # the last of them is in the last bucket
    numbers = far.clamp(max=EXACT - 1)
    for edge in EDGES:
        numbers = numbers + (far >= edge)
    return numbers[distance.clamp(max=FARTHEST - 1)]

"""What a validation adds up, and the metrics that it makes of the sums."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LAST, AVERAGED = "validation", "averaged"
"""What the metrics of the last weights, and those of averaged ones, begin with."""


class ValidationSums:
    """Sums over the targets of each corpus.

    Args:
        corpora: their names, in the order of the validation loaders.
        token_bytes: `(n_vocab,)`: bytes of text behind each token.

    Attributes:
        sums: `(corpus, 4)`, float64: nats, nats by averaged weights, targets, bytes of text.
    """

    def __init__(self, corpora: Sequence[str], token_bytes: Tensor) -> None:
        self._corpora, self._token_bytes = corpora, token_bytes
        self.sums = torch.zeros(len(corpora), 4, dtype=torch.float64, device=token_bytes.device)

    def add(self, corpus: int, targets: Tensor, losses: Tensor, averaged: Tensor | None) -> None:
        """Add windows of a corpus.

        Args:
            targets: `(sequence, position)`, -1 where there is none.
            losses: of each target, nats, 0 where there is none.
            averaged: those by averaged weights, where there are any.
        """
        counted = targets >= 0
        n_bytes = self._token_bytes[targets.clamp(min=0)].where(counted, 0).sum()
        nats = losses.double().sum()
        by_average = torch.zeros_like(nats) if averaged is None else averaged.double().sum()
        self.sums[corpus] += torch.stack((nats, by_average, counted.sum(), n_bytes))

    def metrics(self, sums: Tensor, *, averaged: bool) -> dict[str, float]:
        """Loss in nats a token, perplexity, and bits a byte of text, over all corpora and for each.

        Args:
            sums: as the attribute, of all ranks together.
            averaged: also those of averaged weights.
        """
        rows = [("", sums.sum(0).tolist())]
        if len(self._corpora) > 1:
            rows += [(f"/{corpus}", row) for corpus, row in zip(self._corpora, sums.tolist(), strict=True)]
        metrics: dict[str, float] = {}
        for corpus, (nats, by_average, tokens, n_bytes) in rows:
            metrics |= _metrics(f"{LAST}{corpus}", nats, tokens, n_bytes)
            if averaged:
                metrics |= _metrics(f"{AVERAGED}{corpus}", by_average, tokens, n_bytes)
        return metrics


def _metrics(name: str, nats: float, tokens: float, n_bytes: float) -> dict[str, float]:
    if not tokens:
        return {}
    loss = nats / tokens
    return {
        f"{name}/loss": loss,
        f"{name}/perplexity": math.exp(min(loss, 700.0)),
        f"{name}/bits_per_byte": nats / math.log(2) / max(n_bytes, 1.0),
    }

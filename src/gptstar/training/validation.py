"""The sums over a validation, and the metrics computed from them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LAST, AVERAGED = "validation", "averaged"
"""Prefixes of the metrics: for the last weights, and for averaged weights."""


class ValidationSums:
    """Sums of losses, targets and bytes over the validation text of each corpus.

    Args:
        corpora: the names of the corpora, in the order of the validation loaders.
        token_bytes: `(n_vocab,)`, the bytes of text of each token.

    Attributes:
        sums: `(corpus, 4)`, float64: nats, nats by averaged weights, targets, bytes of text.
    """

    def __init__(self, corpora: Sequence[str], token_bytes: Tensor) -> None:
        self._corpora, self._token_bytes = corpora, token_bytes
        self.sums = torch.zeros(len(corpora), 4, dtype=torch.float64, device=token_bytes.device)

    def add(self, corpus: int, targets: Tensor, losses: Tensor, averaged: Tensor | None) -> None:
        """Add the losses of a corpus's windows.

        Args:
            corpus: the index of the corpus.
            targets: `(sequence, position)`, -1 where there is none.
            losses: the loss of each target in nats, 0 where there is none.
            averaged: the losses with averaged weights; None if there are no averaged weights.
        """
        counted = targets >= 0
        n_bytes = self._token_bytes[targets.clamp(min=0)].where(counted, 0).sum()
        nats = losses.double().sum()
        by_average = torch.zeros_like(nats) if averaged is None else averaged.double().sum()
        self.sums[corpus] += torch.stack((nats, by_average, counted.sum(), n_bytes))

    def metrics(self, sums: Tensor, *, averaged: bool) -> dict[str, float]:
        """Return the loss in nats per token, perplexity, and bits per byte of text, over all corpora and for each.

        Args:
            sums: the attribute `sums`, summed over all ranks.
            averaged: whether to include the metrics of averaged weights.
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

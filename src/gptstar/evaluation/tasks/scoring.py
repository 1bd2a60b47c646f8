"""Log-likelihoods of continuations: shared prefixes are read once, and only the needed logits are computed."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptstar.errors import CheckpointError
from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.precision import computing_in
from gptstar.evaluation.tasks.rows import Row, rows_of
from gptstar.inference.transfer import HostCopy, to_device
from gptstar.model import GPT
from gptstar.model.view import View

CPU_BATCH_TOKENS = 1024
"""The batch size in tokens at which a CPU is fastest, because its activations fit the cache."""

CACHED_ROWS = 32
"""Rows of logits that a CPU normalises at once: as many as fit its cache."""

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Scorable:
    """A continuation to score.

    Attributes:
        tokens: the tokens of context and continuation, at least one of each.
        n_scored: the number of tokens of the continuation.
    """

    tokens: tuple[int, ...]
    n_scored: int

    @classmethod
    def cut(cls, context: Sequence[int], continuation: Sequence[int], context_length: int) -> "Scorable":
        """Truncate the beginning of a request, so that the model reads at most `context_length` tokens.

        Raises:
            ValueError: the continuation or its context is empty, or the continuation exceeds the context length.
        """
        if not context or not 0 < len(continuation) <= context_length:
            raise ValueError(f"{len(context)} tokens of context, {len(continuation)} of continuation")
        return cls((*context, *continuation)[-(context_length + 1) :], len(continuation))


class Score(NamedTuple):
    """A continuation's log-likelihood in nats, and whether greedy decoding gives the same continuation."""

    log_likelihood: float
    greedy: bool


Finish = Callable[[], dict[int, Score]]
"""A function that waits for the scores of a batch, and returns them by index of the request."""


class Scorer:
    """Scorer of continuations with a model in eval mode, on the model's device.

    The batching of requests changes scores by rounding only. Rounding errors are small: float32 products don't use
    TF32, and log-likelihoods are summed in float64.

    Attributes:
        most: the largest batch that the device reads at once.
        batch_size: the most rows to read at once, if the user limits them.
    """

    def __init__(
        self, model: GPT, *, dtype: Dtype = "float32", batch_tokens: int | None = None, batch_size: int | None = None
    ) -> None:
        """Prepare to score with products in `dtype`, and `batch_tokens` at once; `batch_size_for` has the default."""
        self.model, self.dtype, self.batch_size = model, dtype, batch_size
        self.most = batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS)
        if batch_tokens is not None:
            self.most = self.most._replace(tokens=batch_tokens)
        self.device = model.token_embedding.weight.device

    def batches(self, requests: Sequence[Scorable]) -> list[list[Row]]:
        """Group requests into rows, and rows into batches, the longest first; rows with branches get their own."""
        rows = rows_of([request.tokens[:-1] for request in requests])
        batches: list[list[Row]] = []
        for row in sorted(rows, key=lambda row: (not row.branched, -len(row.tokens))):
            if batches and self._fits(batches[-1], row):
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def _fits(self, batch: Sequence[Row], row: Row) -> bool:
        """Whether a batch has room for one more row, which is not longer than its first."""
        n_rows, length = len(batch) + 1, len(batch[0].tokens)
        mask_cells = n_rows * self.model.config.n_heads * length**2 if row.branched else 0
        return (
            row.branched == batch[0].branched
            and n_rows * length <= self.most.tokens
            and mask_cells <= self.most.mask_cells
            and (self.batch_size is None or n_rows <= self.batch_size)
        )

    @torch.inference_mode()
    def score(self, requests: Sequence[Scorable], batch: Sequence[Row]) -> Finish:
        """Start to score the requests of a batch, without waiting for a GPU.

        Returns:
            A function that waits for the scores. It raises `CheckpointError` if log-likelihoods are not finite.
        """
        length = max(len(row.tokens) for row in batch)
        queries = [_queries(requests, row) for row in batch]
        n_queries = max(map(len, queries))
        with self.computing():
            view = self._view(batch, length) if batch[0].branched else None
            tokens, nodes = self._padded([row.tokens for row in batch]), self._padded(queries)
            if n_queries <= (0.8 if view is not None else 0.5) * length:
                hidden = self.model.hidden(tokens, view, selected=nodes)  # (row, query, d_model)
            else:  # here selecting tokens would cost more than it saves
                hidden = self.model.hidden(tokens, view)
                hidden = hidden.gather(1, nodes[..., None].expand(-1, -1, hidden.shape[2]))
            return self._read_off(requests, batch, queries, hidden)

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which products are computed in the chosen type."""
        return computing_in(getattr(torch, self.dtype), self.device)

    def _padded(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """Stack arrays as the rows of a tensor on the device, padded with zeros."""
        padded = pad_sequence([torch.from_numpy(each) for each in arrays], batch_first=True)
        return to_device(padded.numpy(), self.device)

    def _view(self, batch: Sequence[Row], length: int) -> View:
        mask = np.broadcast_to(np.eye(length, dtype=bool), (len(batch), length, length)).copy()  # padding sees itself
        for number, row in enumerate(batch):
            mask[number, : len(row.tokens), : len(row.tokens)] = row.attention_mask()
        positions = self._padded([row.positions for row in batch])
        return View(positions, positions, to_device(mask, self.device))

    def _read_off(
        self, requests: Sequence[Scorable], batch: Sequence[Row], queries: Sequence[np.ndarray], hidden: Tensor
    ) -> Finish:
        """Score the tokens of all continuations.

        Args:
            hidden: `(row, query, d_model)`, the normed output of the last block at `queries`, padded at the end.
        """
        numbers, places, targets = [], [], []
        for row_number, (row, nodes) in enumerate(zip(batch, queries, strict=True)):
            for number, path in row.paths.items():
                n_scored = requests[number].n_scored
                numbers.append(number)
                places.append(row_number * hidden.shape[1] + np.searchsorted(nodes, path[-n_scored:]))
                targets.append(requests[number].tokens[-n_scored:])
        starts = np.cumsum([0] + [len(each) for each in places[:-1]])  # the first token of each request
        place, target = np.concatenate(places), np.concatenate(targets)
        order = np.argsort(place, kind="stable")
        copy = HostCopy(self._token_scores(hidden.flatten(0, 1), place[order], target[order]))

        def finish() -> dict[int, Score]:
            (in_order,) = copy.wait()
            by_token = np.empty(in_order.shape)
            by_token[:, order] = in_order.numpy()
            if not np.isfinite(by_token).all():
                is_full = self.dtype == "float32"
                cause = "its weights are damaged or diverged" if is_full else "use evaluation.dtype=float32"
                raise CheckpointError(f"the model's log-likelihoods are not finite in {self.dtype}: {cause}")
            totals = np.add.reduceat(by_token[0], starts).tolist()
            greedy = np.minimum.reduceat(by_token[1], starts).astype(bool).tolist()
            return dict(zip(numbers, map(Score, totals, greedy), strict=True))

        return finish

    def _token_scores(self, hidden: Tensor, places: np.ndarray, targets: np.ndarray) -> Tensor:
        """Score target tokens from hidden states.

        Args:
            hidden: `(place, d_model)`, the hidden states.
            places: `(token,)`, int64, ascending: the hidden state of each target; several may share one.
            targets: `(token,)`, int64, the target tokens.

        Returns:
            `(2, token)`, float64: the log-likelihood of each target, and 1 if it is the likeliest token.
        """
        needed, which = np.unique(places, return_inverse=True)  # without the padding
        of_place, place, target = (to_device(each, self.device) for each in (needed, which, targets))
        scores = torch.empty(2, len(which), dtype=torch.float64, device=self.device)
        chunk = max(1, self.most.logits // self.model.config.n_vocab)
        for start in range(0, len(needed), chunk):
            tokens = slice(*np.searchsorted(which, (start, start + chunk)).tolist())
            logits = self.model.logits(hidden[of_place[start : start + chunk]]).float()  # (place, n_vocab)
            here, chosen = place[tokens] - start, target[tokens]
            parts = torch.split(logits, len(logits) if logits.is_cuda else CACHED_ROWS)
            total = torch.cat([part.logsumexp(dim=-1) for part in parts])
            likeliest = torch.cat([part.argmax(dim=-1) for part in parts])
            scores[0, tokens] = logits[here, chosen].double() - total.double()[here]
            scores[1, tokens] = (likeliest[here] == chosen).double()
        return scores


def _queries(requests: Sequence[Scorable], row: Row) -> np.ndarray:
    """Return the nodes of a row whose logits are needed; one-token continuations of one context share a node."""
    nodes = [path[-requests[number].n_scored :] for number, path in row.paths.items()]
    return nodes[0] if len(nodes) == 1 else np.unique(np.concatenate(nodes))

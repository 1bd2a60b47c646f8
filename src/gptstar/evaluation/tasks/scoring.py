"""Log-likelihoods of continuations: shared prefixes are read once, and logits computed only where they are needed."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gptstar.errors import CheckpointError
from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.precision import computing_in
from gptstar.evaluation.tasks.rows import Row, rows_of
from gptstar.inference.transfer import HostCopy, to_device
from gptstar.model import GPT
from gptstar.model.view import View

CPU_BATCH_TOKENS = 1024
"""Tokens that a CPU reads fastest: they fit its cache."""

CACHED_ROWS = 32
"""Rows of logits that a CPU normalises at once: they fit its cache."""

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Scorable:
    """A continuation to score.

    Attributes:
        tokens: context and continuation, at least one token of each.
        n_scored: tokens of the continuation.
    """

    tokens: tuple[int, ...]
    n_scored: int

    @classmethod
    def cut(cls, context: Sequence[int], continuation: Sequence[int], context_length: int) -> "Scorable":
        """Keep what fits: the model reads at most `context_length` tokens, and the end is kept.

        Raises:
            ValueError: nothing to score, nothing to score it from, or a continuation longer than the context length.
        """
        if not context or not 0 < len(continuation) <= context_length:
            raise ValueError(f"{len(context)} tokens of context, {len(continuation)} of continuation")
        return cls((*context, *continuation)[-(context_length + 1) :], len(continuation))


@dataclass(frozen=True)
class Score:
    """A continuation's log-likelihood in nats, and whether greedy decoding would have written it."""

    log_likelihood: float
    greedy: bool


class Scorer:
    """Scores continuations with a model, which is in eval mode and on its device.

    Scores don't depend on how requests fall into batches but for rounding, which is kept small: products of float32
    stay float32, and log-likelihoods are added up in float64.

    Attributes:
        most: how much to read at once.
        batch_size: rows to read at once at most.
    """

    def __init__(
        self, model: GPT, *, dtype: Dtype = "float32", batch_tokens: int | None = None, batch_size: int | None = None
    ) -> None:
        """Prepare to score.

        Args:
            batch_tokens: tokens to read at once; by default as `batch_size_for` says.
            model, dtype, batch_size: the model, the type of its products, and rows to read at once at most.
        """
        self.model, self.dtype, self.batch_size = model, dtype, batch_size
        self.most = batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS)
        if batch_tokens is not None:
            self.most = replace(self.most, tokens=batch_tokens)
        self.device = model.token_embedding.weight.device

    def batches(self, requests: Sequence[Scorable]) -> list[list[Row]]:
        """Requests as rows, and rows in batches, the longest first; rows with branches apart from those without."""
        rows = rows_of([request.tokens[:-1] for request in requests])
        batches: list[list[Row]] = []
        for branched in (True, False):
            batch: list[Row] = []
            for row in sorted((row for row in rows if row.branched == branched), key=lambda row: -len(row.tokens)):
                if batch and not self._fits(len(batch) + 1, len(batch[0].tokens), branched):
                    batches.append(batch)
                    batch = []
                batch.append(row)
            if batch:
                batches.append(batch)
        return batches

    def _fits(self, n_rows: int, length: int, branched: bool) -> bool:
        cells = n_rows * self.model.config.n_heads * length**2 if branched else 0
        in_tokens = n_rows * length <= self.most.tokens and cells <= self.most.mask_cells
        return in_tokens and (self.batch_size is None or n_rows <= self.batch_size)

    @torch.inference_mode()
    def score(self, requests: Sequence[Scorable], batch: Sequence[Row]) -> "Pending":
        """Start to score the requests whose rows make up a batch; a GPU is not waited for."""
        length = max(len(row.tokens) for row in batch)
        tokens = np.zeros((len(batch), length), dtype=np.int64)
        for number, row in enumerate(batch):
            tokens[number, : len(row.tokens)] = row.tokens
        asked = [_asked(requests, row) for row in batch]
        most = max(len(nodes) for nodes in asked)
        wanted = np.zeros((len(batch), most), dtype=np.int64)
        for number, nodes in enumerate(asked):
            wanted[number, : len(nodes)] = nodes
        with self.computing():
            scope = self._view(batch, length) if batch[0].branched else None
            read, needed = to_device(tokens, self.device), to_device(wanted, self.device)
            if most <= (0.8 if scope is not None else 0.5) * length:
                hidden = self.model.hidden(read, scope, selected=needed)  # (row, selected, d_model)
            else:  # selecting the tokens would cost more than it saves
                hidden = self.model.hidden(read, scope)
                hidden = hidden.gather(1, needed[..., None].expand(-1, -1, hidden.shape[2]))
            return self._read_off(requests, batch, asked, hidden)

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Compute in the chosen type, and in nothing less."""
        return computing_in(getattr(torch, self.dtype), self.device)

    def _view(self, batch: Sequence[Row], length: int) -> View:
        positions = np.zeros((len(batch), length), dtype=np.int64)
        seen = np.broadcast_to(np.eye(length, dtype=bool), (len(batch), length, length)).copy()  # padding sees itself
        for number, row in enumerate(batch):
            nodes = len(row.tokens)
            positions[number, :nodes] = row.positions
            seen[number, :nodes, :nodes] = row.seen()
        at = to_device(positions, self.device)
        return View(at, at, to_device(seen, self.device))

    def _read_off(
        self, requests: Sequence[Scorable], batch: Sequence[Row], asked: Sequence[np.ndarray], hidden: Tensor
    ) -> "Pending":
        """Score the tokens of all continuations.

        Args:
            asked: of each row the nodes whose logits are needed, in order.
            hidden: `(row, asked, d_model)`, the normed output of the last block at these, padded at the end.
        """
        numbers, places, targets = [], [], []
        for start, row, nodes in zip(
            range(0, len(batch) * hidden.shape[1], hidden.shape[1]), batch, asked, strict=True
        ):
            for number, path in row.paths.items():
                n_scored = requests[number].n_scored
                numbers.append(number)
                places.append(start + np.searchsorted(nodes, path[-n_scored:]))
                targets.append(requests[number].tokens[-n_scored:])
        ends = np.cumsum([len(each) for each in places])
        which, target = np.concatenate(places), np.concatenate(targets)
        order = np.argsort(which, kind="stable")
        found = self._token_scores(hidden.flatten(0, 1), which[order], target[order])
        return Pending(numbers, np.concatenate(([0], ends[:-1])), order, HostCopy(found), self.dtype)

    def _token_scores(self, hidden: Tensor, places: np.ndarray, targets: np.ndarray) -> Tensor:
        """Score tokens at places.

        Args:
            hidden: `(place, d_model)`.
            places: `(token,)`, int64, ascending; a place may have several tokens.
            targets: `(token,)`, int64.

        Returns:
            `(2, token)`, float64: the log-likelihood of each token, and 1 where it is the likeliest.
        """
        needed, which = np.unique(places, return_inverse=True)  # without the padding
        of_place, place, target = (to_device(each, self.device) for each in (needed, which, targets))
        found = torch.empty(2, len(which), dtype=torch.float64, device=self.device)
        chunk = max(1, self.most.logits // self.model.config.n_vocab)
        for start in range(0, len(needed), chunk):
            tokens = slice(*np.searchsorted(which, (start, start + chunk)).tolist())
            logits = self.model.logits(hidden[of_place[start : start + chunk]]).float()  # (place, n_vocab)
            here, chosen = place[tokens] - start, target[tokens]
            parts = torch.split(logits, len(logits) if logits.is_cuda else CACHED_ROWS)
            total = torch.cat([part.logsumexp(dim=-1) for part in parts])
            likeliest = torch.cat([part.argmax(dim=-1) for part in parts])
            found[0, tokens] = logits[here, chosen].double() - total.double()[here]
            found[1, tokens] = (likeliest[here] == chosen).double()
        return found


@dataclass(frozen=True)
class Pending:
    """Scores that a device computes.

    Attributes:
        numbers: of the requests.
        starts: `(request,)`: the first token of each request.
        order: `(token,)`: the token that each column of `copy` belongs to.
        copy: as `Scorer._token_scores` returns it.
        dtype: of the products.
    """

    numbers: Sequence[int]
    starts: np.ndarray
    order: np.ndarray
    copy: HostCopy
    dtype: Dtype

    def scores(self) -> dict[int, Score]:
        """Wait for the scores, and return them by number of the request.

        Raises:
            CheckpointError: log-likelihoods that are not finite.
        """
        (found,) = self.copy.wait()
        by_token = np.empty(found.shape)
        by_token[:, self.order] = found.numpy()
        if not np.isfinite(by_token).all():
            raise CheckpointError(
                f"the model's log-likelihoods are not finite in {self.dtype}: "
                + ("its weights are damaged or diverged" if self.dtype == "float32" else "use evaluation.dtype=float32")
            )
        totals = np.add.reduceat(by_token[0], self.starts).tolist()
        greedy = np.minimum.reduceat(by_token[1], self.starts).tolist()
        return {
            number: Score(total, bool(is_greedy))
            for number, total, is_greedy in zip(self.numbers, totals, greedy, strict=True)
        }


def _asked(requests: Sequence[Scorable], row: Row) -> np.ndarray:
    """The nodes of a row whose logits are needed; one-token continuations of one context need the same node."""
    nodes = [path[-requests[number].n_scored :] for number, path in row.paths.items()]
    return nodes[0] if len(nodes) == 1 else np.unique(np.concatenate(nodes))

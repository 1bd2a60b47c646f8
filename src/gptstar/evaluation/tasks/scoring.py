"""Log-likelihoods of continuations: common beginnings read once, logits only where they are asked for."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gptstar.errors import CheckpointError
from gptstar.evaluation.tasks.rows import Row, rows_of
from gptstar.model import GPT
from gptstar.model.view import View

CHUNK_LOGITS = 2**25
"""Logits held at once (128 MiB in float32)."""

CACHED_ROWS = 32
"""Of logits that are normalised at once: what a CPU's cache holds."""

MASK_CELLS = 2**26
"""Cells of a batch's attention mask (256 MiB in float32)."""

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
    """Of a continuation: its log-likelihood in nats, and whether greedy decoding would have written it."""

    log_likelihood: float
    greedy: bool


class Scorer:
    """Scores continuations with a model, which is in eval mode and on its device.

    Scores don't depend on how requests fall into batches but for rounding, which is kept small: products of float32
    stay float32, and log-likelihoods are added up in float64.

    Attributes:
        batch_tokens: tokens read at once, padding included. A CPU is fastest while they fit its cache.
        batch_size: rows read at once at most.
    """

    def __init__(
        self, model: GPT, *, dtype: Dtype = "float32", batch_tokens: int = 1024, batch_size: int | None = None
    ) -> None:
        self.model, self.dtype = model, dtype
        self.batch_tokens, self.batch_size = batch_tokens, batch_size
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
        in_tokens = n_rows * length <= self.batch_tokens and cells <= MASK_CELLS
        return in_tokens and (self.batch_size is None or n_rows <= self.batch_size)

    @torch.inference_mode()
    def score(self, requests: Sequence[Scorable], batch: Sequence[Row]) -> Iterator[tuple[int, Score]]:
        """Score the requests whose rows make up a batch: their numbers and scores.

        Raises:
            CheckpointError: log-likelihoods that are not finite.
        """
        length = max(len(row.tokens) for row in batch)
        tokens = np.zeros((len(batch), length), dtype=np.int64)
        for number, row in enumerate(batch):
            tokens[number, : len(row.tokens)] = row.tokens
        asked = [_asked(requests, row) for row in batch]
        most = max(len(nodes) for nodes in asked)
        wanted = np.zeros((len(batch), most), dtype=np.int64)
        for number, nodes in enumerate(asked):
            wanted[number, : len(nodes)] = nodes
        with self.precisely():
            scope = self._view(batch, length) if batch[0].branched else None
            on_device = torch.from_numpy(tokens).to(self.device), torch.from_numpy(wanted).to(self.device)
            if most <= (0.8 if scope is not None else 0.5) * length:
                hidden = self.model.hidden(on_device[0], scope, wanted=on_device[1])  # (row, wanted, d_model)
            else:  # what it takes to tell them apart costs more than they save
                hidden = self.model.hidden(on_device[0], scope)
                hidden = hidden.gather(1, on_device[1][..., None].expand(-1, -1, hidden.shape[2]))
            yield from self._read_off(requests, batch, asked, hidden)

    @contextlib.contextmanager
    def precisely(self) -> Iterator[None]:
        """Compute in the chosen type, and in nothing less."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        autocast = torch.autocast(self.device.type, getattr(torch, self.dtype), enabled=self.dtype != "float32")
        try:
            with autocast:
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _view(self, batch: Sequence[Row], length: int) -> View:
        positions = np.zeros((len(batch), length), dtype=np.int64)
        seen = np.broadcast_to(np.eye(length, dtype=bool), (len(batch), length, length)).copy()  # padding sees itself
        for number, row in enumerate(batch):
            nodes = len(row.tokens)
            positions[number, :nodes] = row.positions
            seen[number, :nodes, :nodes] = row.seen()
        at = torch.from_numpy(positions).to(self.device)
        return View(at, at, torch.from_numpy(seen).to(self.device))

    def _read_off(
        self, requests: Sequence[Scorable], batch: Sequence[Row], asked: Sequence[np.ndarray], hidden: Tensor
    ) -> Iterator[tuple[int, Score]]:
        """The scores.

        Args:
            asked: of each row the nodes whose logits are asked for, in order.
            hidden: `(row, asked, d_model)`, the normed output of the last block at these, padded at the end.
        """
        numbers, places, targets, before = [], [], [], 0
        for row, nodes in zip(batch, asked, strict=True):
            for number, path in row.paths.items():
                n_scored = requests[number].n_scored
                numbers.append(number)
                places.append(before + np.searchsorted(nodes, path[-n_scored:]))
                targets.append(np.asarray(requests[number].tokens[-n_scored:]))
            before += len(nodes)
        flat = torch.cat([hidden[number, : len(nodes)] for number, nodes in enumerate(asked)])  # (place, d_model)
        which, target = np.concatenate(places), torch.from_numpy(np.concatenate(targets)).to(self.device)
        by_place = np.argsort(which, kind="stable")
        scores = torch.empty(len(which), dtype=torch.float64)
        greedy = torch.empty(len(which), dtype=torch.bool)
        chunk = max(1, CHUNK_LOGITS // self.model.config.n_vocab)
        for start in range(0, len(flat), chunk):
            wanted = by_place[slice(*np.searchsorted(which[by_place], (start, start + chunk)))]
            logits = self.model.logits(flat[start : start + chunk]).float()  # (place, n_vocab)
            here = torch.from_numpy(which[wanted] - start).to(self.device)
            chosen = target[torch.from_numpy(wanted).to(self.device)]
            parts = torch.split(logits, len(logits) if logits.is_cuda else CACHED_ROWS)
            total = torch.cat([part.logsumexp(dim=-1) for part in parts])
            likeliest = torch.cat([part.argmax(dim=-1) for part in parts])
            scores[wanted] = (logits[here, chosen].double() - total.double()[here]).cpu()
            greedy[wanted] = (likeliest[here] == chosen).cpu()
        if not scores.isfinite().all():
            raise CheckpointError(
                f"the model's log-likelihoods are not finite in {self.dtype}: "
                + ("its weights are damaged or diverged" if self.dtype == "float32" else "use evaluation.dtype=float32")
            )
        ends = np.cumsum([len(each) for each in places])
        for number, start, end in zip(numbers, [0, *ends[:-1]], ends, strict=True):
            yield number, Score(float(scores[start:end].sum()), bool(greedy[start:end].all()))


def _asked(requests: Sequence[Scorable], row: Row) -> np.ndarray:
    """The nodes of a row whose logits are asked for; one-token continuations of one context ask for the same."""
    return np.unique(np.concatenate([path[-requests[number].n_scored :] for number, path in row.paths.items()]))

"""The model's work for the harness: scoring and generating continuations."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.rows import Row
from gptstar.evaluation.tasks.scoring import Finish, Scorable, Score, Scorer
from gptstar.evaluation.tasks.team import OnResults
from gptstar.inference.decode import decode
from gptstar.inference.sampling import GREEDY, Sampling
from gptstar.inference.stops import Stops, without_marks


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        tokens: the tokens of the text, at least one.
        n_new: the most tokens to add.
        until: the stop strings, none of them empty.
        sampling: how to sample tokens; the worker's seed replaces its seed.
    """

    tokens: tuple[int, ...]
    n_new: int
    until: tuple[str, ...] = ()
    sampling: Sampling = GREEDY


class Worker:
    """Processor of a rank's share of requests, which are all of one kind."""

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, *, seed: int = 0) -> None:
        self.scorer, self._tokenizer, self._seed = scorer, tokenizer, seed

    def __call__(self, requests: Sequence[Any], rank: int, world: int, on_results: OnResults) -> dict[int, Any]:
        """Score `Scorable`s or continue `Prompt`s; return `Score`s or texts by index of the request."""
        shares: Iterable[dict[int, Any]]
        if requests and isinstance(requests[0], Prompt):
            shares = (self._write(requests, numbers) for numbers in self._together(requests)[rank::world])
        else:
            shares = self._scores(requests, self.scorer.batches(requests)[rank::world])
        results: dict[int, Any] = {}
        for share in shares:
            on_results(share)
            results |= share
        return results

    def _scores(self, requests: Sequence[Scorable], batches: Sequence[Sequence[Row]]) -> Iterator[dict[int, Score]]:
        """Score batches; a GPU computes one batch while the host prepares the next and collects the previous one."""
        waiting: list[Finish] = []
        for batch in batches:
            started = self._start(requests, batch)
            for finish in waiting:
                yield finish()
            waiting = started
        for finish in waiting:
            yield finish()

    def _start(self, requests: Sequence[Scorable], batch: Sequence[Row]) -> list[Finish]:
        """Start to score a batch; if a GPU runs out of memory, split the batch in halves, down to a single row."""
        try:
            return [self.scorer.score(requests, batch)]
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ConfigError(
                    f"a row of {len(batch[0].tokens):,} tokens does not fit into the memory of {self.scorer.device}: "
                    "lower evaluation.context_length, or free memory that other processes use"
                ) from error
        half = len(batch) // 2  # outside the except clause, whose traceback holds the failed batch's tensors
        return self._start(requests, batch[:half]) + self._start(requests, batch[half:])

    def _together(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Batch the indices of prompts with the same settings, ordered by length."""
        alike: defaultdict[object, list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            alike[prompt.n_new, prompt.until, prompt.sampling].append(number)
        batches = []
        for numbers in alike.values():
            numbers.sort(key=lambda number: -len(prompts[number].tokens))
            while numbers:
                longest = len(prompts[numbers[0]].tokens) + prompts[numbers[0]].n_new
                n_rows = min(max(1, self.scorer.most.tokens // longest), self.scorer.batch_size or len(numbers))
                batches.append(numbers[:n_rows])
                del numbers[:n_rows]
        return batches

    def _write(self, prompts: Sequence[Prompt], numbers: Sequence[int]) -> dict[int, str]:
        """Continue the prompts with these indices, which have the same settings."""
        first = prompts[numbers[0]]
        end_of_text, stops = self._tokenizer.end_of_text, Stops(self._tokenizer, first.until)
        tail = 1 + max((len(stop.encode()) for stop in first.until), default=0)  # a token has at least one byte

        def ended(tokens: Sequence[int]) -> bool:
            text = stops.marked_text(tokens[-tail:]) if first.until else ""
            return tokens[-1] == end_of_text or any(stop in text for stop in stops.strings)

        with self.scorer.computing():
            written = decode(
                self.scorer.model,
                [prompts[number].tokens for number in numbers],
                first.n_new,
                sampling=replace(first.sampling, seed=self._seed),
                ended=ended,
                numbers=numbers,
                n_tokens=self._tokenizer.n_vocab,
            )
        texts = {}
        for number, tokens in zip(numbers, written, strict=True):
            text = stops.marked_text(tokens)
            for stop in stops.strings:
                text = text.partition(stop)[0]
            texts[number] = without_marks(text)
        return texts

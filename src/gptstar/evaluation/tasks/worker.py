"""What the model does for the harness: score continuations, and write them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.rows import Row
from gptstar.evaluation.tasks.scoring import Pending, Scorable, Score, Scorer
from gptstar.evaluation.tasks.team import Settled
from gptstar.inference.decode import decode
from gptstar.inference.sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        tokens: at least one.
        n_new: tokens to add at most.
        until: texts that end it, none of them empty.
        temperature: 0 takes the likeliest token.
    """

    tokens: tuple[int, ...]
    n_new: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int | None = None


class Worker:
    """Does a rank's share of requests, which are all of one kind."""

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, *, seed: int = 0) -> None:
        self.scorer, self._tokenizer, self._seed = scorer, tokenizer, seed

    def __call__(
        self, requests: Sequence[Scorable | Prompt], rank: int, world: int, settled: Settled
    ) -> dict[int, Score | str]:
        """Results by number of the request."""
        to_score = [request for request in requests if isinstance(request, Scorable)]
        to_write = [request for request in requests if isinstance(request, Prompt)]
        assert not (to_score and to_write)  # they are numbered apart
        found: dict[int, Score | str] = {}
        for scores in self._scores(to_score, self.scorer.batches(to_score)[rank::world]):
            settled(scores)
            found |= scores
        for numbers in self._together(to_write)[rank::world]:
            texts = self._write({number: to_write[number] for number in numbers})
            settled(texts)
            found |= texts
        return found

    def _scores(self, requests: Sequence[Scorable], batches: Sequence[Sequence[Row]]) -> Iterator[dict[int, Score]]:
        """Score batches; a GPU computes the next batch while the host prepares and reads off others."""
        waiting: list[Pending] = []
        for batch in batches:
            started = self._start(requests, batch)
            for pending in waiting:
                yield pending.scores()
            waiting = started
        for pending in waiting:
            yield pending.scores()

    def _start(self, requests: Sequence[Scorable], batch: Sequence[Row]) -> list[Pending]:
        """Start to score a batch; where a GPU runs out of memory, start with its halves.

        Raises:
            ConfigError: one row does not fit the memory.
        """
        try:
            return [self.scorer.score(requests, batch)]
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ConfigError(
                    f"a row of {len(batch[0].tokens):,} tokens does not fit the memory of {self.scorer.device}: lower "
                    "evaluation.context_length, or free the memory that others use"
                ) from error
        half = len(batch) // 2  # outside of the except clause, which holds the tensors of the failed batch
        return self._start(requests, batch[:half]) + self._start(requests, batch[half:])

    def _together(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Prompts that are continued in the same way, by length, as many at once as a batch holds."""
        alike: dict[object, list[int]] = {}
        for number, prompt in enumerate(prompts):
            alike.setdefault((prompt.n_new, prompt.until, prompt.temperature, prompt.top_k), []).append(number)
        batches = []
        for numbers in alike.values():
            numbers.sort(key=lambda number: -len(prompts[number].tokens))
            while numbers:
                longest = len(prompts[numbers[0]].tokens) + prompts[numbers[0]].n_new
                n_rows = min(max(1, self.scorer.most.tokens // longest), self.scorer.batch_size or len(numbers))
                batches.append(numbers[:n_rows])
                del numbers[:n_rows]
        return batches

    def _write(self, prompts: Mapping[int, Prompt]) -> dict[int, str]:
        some = next(iter(prompts.values()))
        end_of_text = self._tokenizer.end_of_text
        tail = 1 + max((len(stop.encode()) for stop in some.until), default=0)  # a token is a byte or more

        def ended(tokens: Sequence[int]) -> bool:
            text = self._tokenizer.decode(tokens[-tail:]) if some.until else ""
            return tokens[-1] == end_of_text or any(stop in text for stop in some.until)

        with self.scorer.computing():
            written = decode(
                self.scorer.model,
                [prompt.tokens for prompt in prompts.values()],
                some.n_new,
                sampling=Sampling(some.temperature, some.top_k, self._seed),
                ended=ended,
                numbers=list(prompts),
            )
        return {  # decoding drops end-of-text
            number: _cut(self._tokenizer.decode(tokens), some.until)
            for number, tokens in zip(prompts, written, strict=True)
        }


def _cut(text: str, until: Sequence[str]) -> str:
    """What stands before the first of the texts that end it."""
    for stop in until:
        text = text.partition(stop)[0]
    return text

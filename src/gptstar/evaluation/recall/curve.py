"""The share of right answers of a model at each length, depth and load."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gptstar.evaluation.precision import computing_in
from gptstar.evaluation.recall.config import LEARNED, RecallConfig
from gptstar.evaluation.recall.questions import PairQuestions, PasskeyQuestions, Questions
from gptstar.evaluation.statistics.intervals import Interval, accuracy_interval
from gptstar.model import GPT

Test = Literal["pairs", "passkey"]

Answer = Callable[[Questions], np.ndarray]
"""A function from questions to the index of the likeliest candidate for each, `(item,)`, int64."""


@dataclass(frozen=True)
class Cell:
    """The accuracy at one length, and at one depth or number of pairs.

    Attributes:
        depth: the depth; None for all depths of a length together, or for a random depth of each item.
        chance: the accuracy of a guess: among the values in the text, or for the passkey among all words.
        accuracy: the share of right answers; None if the model has fewer positions.
    """

    context_length: int
    depth: float | None
    pairs: int
    items: int
    chance: float
    accuracy: Interval | None


@dataclass(frozen=True)
class RecallCurve:
    """The results of one test of one model.

    Attributes:
        name: the name of the model, unique in the study.
        checkpoint: the identity of its checkpoint.
        trained_at: the training context.
        test: `pairs` or `passkey`.
        candidates: the number of words from which an answer is chosen.
        words: the words in the texts: `symbols` or `english`.
        lengths: a cell for each length, all depths together.
        depths: a cell for each length and depth.
        loads: a cell for each number of pairs, at one length.
    """

    name: str
    checkpoint: Mapping[str, Any]
    trained_at: int
    test: Test
    candidates: int
    words: str
    lengths: tuple[Cell, ...]
    depths: tuple[Cell, ...]
    loads: tuple[Cell, ...] = ()
    learned: bool = field(init=False)
    """Whether the accuracy at the training context, over all depths, is 95 % or more."""

    def __post_init__(self) -> None:
        trained = next(cell.accuracy for cell in self.lengths if cell.context_length == self.trained_at)
        object.__setattr__(self, "learned", trained is not None and trained.value >= LEARNED)


def answers_of(model: GPT, device: torch.device, dtype: torch.dtype, batch_tokens: int) -> Answer:
    """Return a function that has a model in eval mode choose the candidate with the highest log-likelihood."""

    @torch.inference_mode()
    def answers(questions: Questions) -> np.ndarray:
        chosen, candidates = list[Tensor](), torch.from_numpy(questions.candidates).to(device)
        rows = max(1, batch_tokens // questions.tokens.shape[1])
        for batch in torch.split(torch.from_numpy(questions.tokens), rows):
            with computing_in(dtype, device):
                logits = model.logits(model.hidden(batch.to(device))[:, -1])  # (item, n_vocab)
            chosen.append(logits.float()[:, candidates].argmax(dim=1).cpu())
        return torch.cat(chosen).numpy()

    return answers


@dataclass(frozen=True)
class Asker:
    """Asks a model questions.

    Attributes:
        capacity: the number of learned positions; None if there is no limit.
        advance: a callback that receives the number of tokens read.
    """

    answer: Answer
    config: RecallConfig
    trained_at: int
    capacity: int | None = None
    advance: Callable[[int], object] = lambda _: None

    def pairs(self, questions: PairQuestions) -> tuple[list[Cell], list[Cell], list[Cell]]:
        """Ask for values; return the cells by length, by length and depth, and by load.

        Raises:
            ConfigError: a text has no room for its pairs.
        """
        config, chance = self.config, 1 / self.config.pairs

        def at(depth: float, length: int) -> Questions:
            return questions.at(depth, config.pairs, length, config.items)

        lengths, depths = self._by_length(at, config.pairs, chance)
        loads = []
        fitting, length = config.fitting_loads(self.trained_at, questions.most_pairs)
        for n_pairs in fitting:
            right = self._right(length, partial(questions.at, None, n_pairs, length, config.items))
            loads.append(_cell(length, None, n_pairs, 1 / n_pairs, right))
        return lengths, depths, loads

    def passkeys(self, questions: PasskeyQuestions) -> tuple[list[Cell], list[Cell]]:
        """Ask for a passkey; return the cells by length, and by length and depth."""
        return self._by_length(questions.at, 1, 1 / len(questions.lexicon.keys))

    def _by_length(
        self, at: Callable[[float, int], Questions], n_pairs: int, chance: float
    ) -> tuple[list[Cell], list[Cell]]:
        lengths, depths = [], []
        for length in self.config.lengths(self.trained_at):
            rights = []
            for depth in sorted(self.config.depths):
                rights.append(self._right(length, partial(at, depth, length)))
                depths.append(_cell(length, depth, n_pairs, chance, rights[-1]))
            whole = None if rights[0] is None else np.concatenate([each for each in rights if each is not None])
            lengths.append(_cell(length, None, n_pairs, chance, whole, len(rights)))
        return lengths, depths

    def _right(self, length: int, compose: Callable[[], Questions]) -> np.ndarray | None:
        """Return whether each answer is right, `(item,)`; None if the model has fewer positions."""
        if self.capacity is not None and length > self.capacity:
            return None
        questions = compose()
        right = self.answer(questions) == questions.answers
        self.advance(questions.tokens.size)
        return right


def _cell(
    length: int, depth: float | None, n_pairs: int, chance: float, right: np.ndarray | None, n_depths: int = 1
) -> Cell:
    """Make a cell from `right`, `(item,)`: all items of the first depth, then all of the second, and so on."""
    if right is None:
        return Cell(length, depth, n_pairs, 0, chance, None)
    clusters = np.tile(np.arange(len(right) // n_depths), n_depths)  # the same pairs at every depth
    return Cell(length, depth, n_pairs, len(right), chance, accuracy_interval(right, clusters))


def cells_of(curve: RecallCurve, length: int) -> Iterator[Cell]:
    """Yield the cells of a length, by depth."""
    return (cell for cell in curve.depths if cell.context_length == length)

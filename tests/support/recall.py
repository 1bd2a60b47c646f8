"""Models whose recall is known, and studies of theirs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gptstar.data.text.recall import SYMBOLS, own_tokenizer
from gptstar.evaluation.recall import RecallConfig
from gptstar.evaluation.recall.curve import Asker, RecallCurve
from gptstar.evaluation.recall.questions import PairQuestions, Questions
from gptstar.evaluation.results import write_study

OWN = own_tokenizer()


def looked_up(questions: Questions) -> np.ndarray:
    """The candidate that follows the first place of the key that is asked for."""
    answers = []
    for row in questions.tokens.tolist():
        key = row[-1]
        answers.append(questions.candidates.tolist().index(row[row.index(key) + 1]))
    return np.asarray(answers)


def guessed(questions: Questions) -> np.ndarray:
    """Any value of the text, at random."""
    random = np.random.default_rng(0)
    values = set(questions.candidates.tolist())
    shown = [[token for token in row if token in values] for row in questions.tokens.tolist()]
    return np.asarray([questions.candidates.tolist().index(random.choice(each)) for each in shown])


def within(reach: int) -> Callable[[Questions], np.ndarray]:
    """Look up what is at most so many tokens back, and guess the rest."""

    def answer(questions: Questions) -> np.ndarray:
        far = [len(row) - 1 - row.index(row[-1]) > reach for row in questions.tokens.tolist()]
        return np.where(far, guessed(questions), looked_up(questions))

    return answer


def asked(
    answer: Callable[[Questions], np.ndarray], checkpoint: Mapping[str, Any] | None = None, **settings: object
) -> RecallCurve:
    """The answers of a model that was trained at 53 tokens."""
    asker = Asker(answer, RecallConfig(**{"items": 97, "multiples": (1, 2, 4), **settings}), 53)
    lengths, depths, loads = asker.pairs(PairQuestions(OWN, SYMBOLS, seed=3))
    return RecallCurve("m", checkpoint or {}, 53, "pairs", 32, "symbols", tuple(lengths), tuple(depths), tuple(loads))


def write_recall(folder: Path, *curves: RecallCurve) -> Path:
    """Write `results.json` as a study of recall does."""
    folder.mkdir(parents=True, exist_ok=True)
    write_study(folder, "recall", RecallConfig(), curves=[asdict(curve) for curve in curves])
    return folder

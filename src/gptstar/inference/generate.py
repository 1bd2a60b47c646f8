"""Texts from prompts, whole or streamed."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.inference.decode import Drawn, steps
from gptstar.inference.limits import check_size
from gptstar.inference.sampling import USUAL, Sampling
from gptstar.inference.stops import Stops, without_marks
from gptstar.model import GPT

EndedBy = Literal["length", "end_of_text", "stop"]


@dataclass(frozen=True)
class Piece(Drawn):
    """A token, and what it adds to its text.

    Attributes:
        text: what is certain now; empty where a character is not complete, or may begin a stop string.
        ended_by: what completes the text with this token; None where the text goes on.
    """

    text: str = ""
    ended_by: EndedBy | None = None


@dataclass
class Continuation:
    """A text that a model wrote, without its prompt and without what ended it.

    Its tokens include those that ended it. Log-probabilities, in nats, before any filter, and the likeliest tokens of
    each place are empty unless `n_likeliest` is given.
    """

    prompt: str
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    likeliest: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    ended_by: EndedBy = "length"


def generate(
    model: GPT, prompts: str | Sequence[str], n_new: int = 200, *, n: int = 1, **options: Any
) -> list[Continuation]:
    """Continue texts; `stream` documents the options and the errors.

    Returns:
        `n` continuations of the first prompt, then those of the next.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    check_size(model, n_texts=n * len(prompts), longest=1, n_new=n_new)
    continuations = [Continuation(prompt) for prompt in prompts for _ in range(n)]
    for piece in stream(model, prompts, n_new, n=n, **options):
        text = continuations[piece.number]
        text.text += piece.text
        text.tokens.append(piece.token)
        if piece.log_probability is not None:
            text.log_probabilities.append(piece.log_probability)
            text.likeliest.append(piece.likeliest)
        text.ended_by = piece.ended_by or text.ended_by
    return continuations


def stream(
    model: GPT,
    prompts: str | Sequence[str],
    n_new: int = 200,
    *,
    n: int = 1,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    n_likeliest: int | None = None,
    tokenizer: Tokenizer | None = None,
    compiled: bool = False,
) -> Iterator[Piece]:
    """Continue texts token by token; with ALiBi they may become longer than the training context.

    Args:
        model: in eval mode.
        prompts: an empty prompt begins a document.
        n_new: tokens to add at most.
        n: continuations of each prompt.
        sampling: how to draw tokens; by default `USUAL`. A text's draws depend on its place, not on the other texts.
        stop: strings that end a text, and names of special tokens that do; they are cut off.
        n_likeliest: report this many of the likeliest tokens with each token, and its log-probability; 0 reports the
            log-probability alone, None nothing.
        tokenizer: the one the model was trained with; by default `model.tokenizer`.
        compiled: compile the decoding step, as `steps` says.

    Raises:
        ConfigError: settings out of range, more tokens than learned positions have a capacity for, or more than the
            device can hold.
        CheckpointError: there is no tokenizer, or the weights are damaged.
    """
    if n < 1:
        raise ConfigError(f"n={n} is below 1")
    if not all(stop):
        raise ConfigError("a stop string is empty: it would end every text before it began")
    tokenizer = tokenizer or tokenizer_of(model)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    encoded = [tokenizer.encode([prompt])[0] if prompt else np.array([tokenizer.end_of_text]) for prompt in prompts]
    check_size(model, n_texts=n * len(prompts), longest=max(map(len, encoded), default=0), n_new=n_new)
    texts = [TextStream(tokenizer, stop) for _ in range(n * len(prompts))]
    drawn = steps(
        model,
        [tokens for tokens in encoded for _ in range(n)],
        n_new,
        sampling=sampling or USUAL,
        ended=lambda number: texts[number].ended_by is not None,
        n_likeliest=n_likeliest,
        compiled=compiled,
        n_tokens=tokenizer.n_vocab,
    )
    for place, step in enumerate(drawn, start=1):
        for each in step:
            text = texts[each.number]
            new = text.add(each.token)
            if place == n_new and text.ended_by is None:
                new += text.rest()
                text.ended_by = text.ended_by or "length"
            yield Piece(**vars(each), text=new, ended_by=text.ended_by)


class TextStream:
    """One text from tokens as they come: whole characters only, and nothing that may turn out to be a stop string.

    Attributes:
        ended_by: what completed it; None while it goes on.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.ended_by: EndedBy | None = None
        self._tokenizer, self._stops = tokenizer, Stops(tokenizer, stop)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, token: int) -> str:
        """Return what is certain now: text that neither lacks a byte nor may be the beginning of a stop string."""
        assert self.ended_by is None
        if token == self._tokenizer.end_of_text:
            self.ended_by = "end_of_text"
            return self.rest()
        if mark := self._stops.marks.get(token):
            return self._pass(self._characters.decode(b"", final=True) + mark)
        return self._pass(self._characters.decode(self._tokenizer.bytes_of(token)))

    def rest(self) -> str:
        """Return what was held back, when nothing more comes."""
        text = self._pass(self._characters.decode(b"", final=True)) + without_marks(self._held)
        self._held = ""
        return text

    def _pass(self, text: str) -> str:
        """Return what is certain of new text and of what was held back, and hold back the rest."""
        text, self._held = self._held + text, ""
        stops = self._stops.strings
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        if places:
            self.ended_by = "stop"
            return without_marks(text[: min(places)])
        longest = max(map(len, stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in stops):
                self._held = text[-size:]
                return without_marks(text[:-size])
        return without_marks(text)


def tokenizer_of(model: GPT) -> Tokenizer:
    """The tokenizer that came with a model.

    Raises:
        CheckpointError: none did.
        DataError: it has more tokens than the model.
    """
    if model.tokenizer is None:
        raise CheckpointError("the checkpoint holds no tokenizer: import it again with --tokenizer FILE")
    tokenizer = _tokenizer(model.tokenizer)
    tokenizer.check_vocabulary(model.config.n_vocab, "the checkpoint's tokenizer")
    return tokenizer


_tokenizer = lru_cache(maxsize=8)(Tokenizer)  # GPT-2's takes a quarter of a second to read


def printable(tokenizer: Tokenizer, token: int) -> str:
    """A token as text in which control characters are escaped."""
    return repr(tokenizer.text_of(token))[1:-1]

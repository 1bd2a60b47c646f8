"""Generate texts from prompts, complete or streamed."""

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
    """A generated token, and the text that it adds.

    Attributes:
        text: the text that is certain now; empty if a character is incomplete or may begin a stop string.
        ended_by: the reason why the text ends with this token; None if it continues.
    """

    text: str = ""
    ended_by: EndedBy | None = None


@dataclass
class Continuation:
    """A generated text, without its prompt and without the stop string or token that ended it.

    `tokens` include those that ended it. `log_probabilities` (in nats, before any filter) and `likeliest` (the
    likeliest tokens at each place) are empty unless `n_likeliest` is given.
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
    """Continue texts. The options and errors are those of `stream`.

    Returns:
        The `n` continuations of the first prompt, then those of the next.
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
    """Continue texts token by token. With ALiBi they may exceed the training context.

    Args:
        model: in eval mode.
        prompts: texts to continue; an empty prompt begins a document.
        n_new: most tokens to generate per text.
        n: number of continuations of each prompt.
        sampling: the sampling method; by default `USUAL`. A text's random numbers depend on its place only.
        stop: strings, or names of special tokens, that end a text; they are removed from it.
        n_likeliest: report each token's log-probability and this many of the likeliest tokens; 0 reports the
            log-probability only, None reports nothing.
        tokenizer: the one the model was trained with; by default `model.tokenizer`.
        compiled: compile the decoding step, as in `steps`.

    Raises:
        ConfigError: a setting is out of range, or the texts exceed the capacity of learned positions or the device's
            memory.
        CheckpointError: there is no tokenizer, or the weights are damaged.
    """
    if n < 1:
        raise ConfigError(f"n={n} is below 1: give 1 or more")
    if not all(stop):
        raise ConfigError("a stop string is empty, and would end every text at once: drop it")
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
    """Decodes a stream of tokens: whole characters only, and nothing that may become a stop string.

    Attributes:
        ended_by: the reason why the text ended; None while it continues.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.ended_by: EndedBy | None = None
        self._tokenizer, self._stops = tokenizer, Stops(tokenizer, stop)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, token: int) -> str:
        """Add a token, and return the text that is certain now: complete characters that can't begin a stop string."""
        assert self.ended_by is None
        if token == self._tokenizer.end_of_text:
            self.ended_by = "end_of_text"
            return self.rest()
        if mark := self._stops.marks.get(token):
            return self._pass(self._characters.decode(b"", final=True) + mark)
        return self._pass(self._characters.decode(self._tokenizer.bytes_of(token)))

    def rest(self) -> str:
        """Return the text that was held back, at the end of the stream."""
        text = self._pass(self._characters.decode(b"", final=True)) + without_marks(self._held)
        self._held = ""
        return text

    def _pass(self, text: str) -> str:
        """Return the certain part of held-back and new text, and hold back the rest."""
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
    """Return the tokenizer that was stored with a model.

    Raises:
        CheckpointError: the model has no tokenizer.
        DataError: the tokenizer has more tokens than the model.
    """
    if model.tokenizer is None:
        raise CheckpointError("the checkpoint has no tokenizer: import it again with --tokenizer FILE")
    tokenizer = _tokenizer(model.tokenizer)
    tokenizer.check_vocabulary(model.config.n_vocab, "the checkpoint's tokenizer")
    return tokenizer


_tokenizer = lru_cache(maxsize=8)(Tokenizer)  # reading GPT-2's tokenizer takes a quarter of a second


def printable(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text with escaped control characters."""
    return repr(tokenizer.text_of(token))[1:-1]

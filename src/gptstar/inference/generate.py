"""Texts from prompts, whole or streamed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError
from gptstar.inference.decode import steps
from gptstar.inference.sampling import USUAL, Sampling
from gptstar.inference.text_stream import TextStream
from gptstar.model import GPT


@dataclass(frozen=True)
class Piece:
    """What one token adds to a text.

    Attributes:
        number: of the text.
        text: what is certain now; empty where a character is not complete, or may begin a stop string.
        token: its number in the vocabulary.
        log_probability: of the token, in nats, as the model has it before anything is filtered; None unless asked.
        likeliest: the likeliest tokens and their log-probabilities; empty unless asked.
        ended_by: what completes the text with this token: `length`, `end_of_text`, `stop`; None where it goes on.
    """

    number: int
    text: str
    token: int
    log_probability: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    ended_by: Literal["length", "end_of_text", "stop"] | None = None


@dataclass
class Continuation:
    """A text that a model wrote.

    Attributes:
        prompt: what it continues.
        text: without the prompt, and without what ended it.
        tokens: those drawn, with those that ended it.
        log_probabilities: of the tokens, in nats, before anything is filtered; empty unless asked.
        likeliest: for each token the likeliest and their log-probabilities; empty unless asked.
        ended_by: `length`, `end_of_text` or `stop`.
    """

    prompt: str
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    likeliest: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    ended_by: str = "length"


def generate(
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
) -> list[Continuation]:
    """Continue texts; `stream` documents the arguments and the errors.

    Returns:
        `n` continuations of the first prompt, then those of the next.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    written = [Continuation(prompt) for prompt in prompts for _ in range(n)]
    pieces = stream(
        model,
        prompts,
        n_new,
        n=n,
        sampling=sampling,
        stop=stop,
        n_likeliest=n_likeliest,
        tokenizer=tokenizer,
        compiled=compiled,
    )
    for piece in pieces:
        text = written[piece.number]
        text.text += piece.text
        text.tokens.append(piece.token)
        if piece.log_probability is not None:
            text.log_probabilities.append(piece.log_probability)
            text.likeliest.append(piece.likeliest)
        text.ended_by = piece.ended_by or text.ended_by
    return written


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
        stop: strings that end a text; they are cut off.
        n_likeliest: report this many of the likeliest tokens with each token, and its log-probability; 0 reports the
            log-probability alone, None nothing.
        tokenizer: the one the model was trained with; by default `model.tokenizer`.
        compiled: compile the decoding step, as `steps` says.

    Raises:
        ConfigError: settings out of range, or more tokens than learned positions have a capacity for.
        CheckpointError: there is no tokenizer.
    """
    if n < 1:
        raise ConfigError(f"n={n} is below 1")
    tokenizer = tokenizer or tokenizer_of(model)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    tokens = [each for prompt in prompts for each in n * [_encoded(tokenizer, prompt)]]
    texts = [TextStream(tokenizer, stop) for _ in tokens]
    drawn = steps(
        model,
        tokens,
        n_new,
        sampling=sampling or USUAL,
        ended=lambda number: texts[number].ended_by is not None,
        n_likeliest=n_likeliest,
        compiled=compiled,
    )
    for place, step in enumerate(drawn, start=1):
        for row, (number, token) in enumerate(zip(step.numbers, step.tokens, strict=True)):
            text = texts[number]
            new = text.add(token)
            if place == n_new and text.ended_by is None:
                new += text.rest()
            yield Piece(
                number,
                new,
                token,
                None if step.log_probabilities is None else step.log_probabilities[row],
                () if step.likeliest is None else tuple(step.likeliest[row]),
                text.ended_by or ("length" if place == n_new else None),
            )


def tokenizer_of(model: GPT) -> Tokenizer:
    """The tokenizer that came with a model.

    Raises:
        CheckpointError: none did.
        DataError: it is another model's.
    """
    if model.tokenizer is None:
        raise CheckpointError("the checkpoint holds no tokenizer: import it again with --tokenizer FILE")
    tokenizer = _tokenizer(model.tokenizer)
    tokenizer.check_vocabulary(model.config.n_vocab, "the checkpoint's tokenizer")
    return tokenizer


_tokenizer = lru_cache(maxsize=8)(Tokenizer)  # GPT-2's takes a quarter of a second to read


def _encoded(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    return tokenizer.encode([prompt])[0] if prompt else np.array([tokenizer.end_of_text])

"""Text from tokens as they come: whole characters only, and nothing that may turn out to be a stop string."""

import codecs
from collections.abc import Sequence
from typing import Literal

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError

EndedBy = Literal["end_of_text", "stop"]


class TextStream:
    """One continuation.

    Attributes:
        ended_by: what completed it; None while it goes on.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Begin it.

        Raises:
            ConfigError: a stop string is empty.
        """
        if not all(stop):
            raise ConfigError("a stop string is empty: it would end every text before it began")
        self.ended_by: EndedBy | None = None
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, token: int) -> str:
        """What is certain now: text that neither lacks a byte nor may be the beginning of a stop string."""
        assert self.ended_by is None
        if token == self._tokenizer.end_of_text:
            self.ended_by = "end_of_text"
            return self.rest()
        return self._pass(self._characters.decode(self._tokenizer.bytes_of(token)))

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        text = self._pass(self._characters.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _pass(self, text: str) -> str:
        text = self._held + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.ended_by, self._held = "stop", ""
            return text[: min(found)]
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text

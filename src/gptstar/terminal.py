"""Safe printing of names and file contents: without control characters and markup."""

import re
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters of terminals, and lone surrogates, which UTF-8 can't encode."""

MARKUP = re.compile(r"<(?=[A-Za-z/!?])|\](?=\()")
"""Beginnings of HTML, and of a link's or picture's address, in Markdown."""


def plain(text: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def in_markdown(text: str) -> str:
    """Escape a text with names for Markdown, so that it creates no HTML, links or pictures."""
    return MARKUP.sub(lambda match: "&lt;" if match[0] == "<" else "]\\", plain(text))


def shortened(text: str, width: int) -> str:
    """Shorten a text to `width` characters by cutting out its middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}" if width > 1 else "…"[:width]


class Terminal(Console):
    """A console that prints text literally, without markup and control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render printed text; rich's own control codes, such as those of progress bars, remain."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


class Tenths:
    """Progress display without a terminal: a line at every tenth of long work, but not more often than `SECONDS`."""

    SECONDS = 10.0
    """The least time between lines; shorter work prints none."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        """Start at 0; `what` is the beginning of each line, and `total` the amount of work."""
        self._console, self._what, self._total, self._done, self._tenths = console, what, total, 0, 0
        self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        """Add finished work, and print a line if one is due."""
        self._done += amount
        tenths, now = 10 * self._done // max(1, self._total), time.monotonic()
        if tenths > self._tenths and now - self._last >= self.SECONDS and not self._console.is_terminal:
            self._tenths, self._last = tenths, now
            self._console.print(f"{self._what}: {10 * tenths} %", highlight=False, soft_wrap=True)

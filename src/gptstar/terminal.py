"""Names and the contents of files as text for people: they can't steer a terminal, nor be taken for markup."""

import re
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that steer a terminal, and halves of characters, which UTF-8 can't hold."""

MARKUP = re.compile(r"<(?=[A-Za-z/!?])|\](?=\()")
"""Where HTML, and the address of a link or picture, would begin in Markdown."""


def plain(text: str) -> str:
    """Replace what a terminal would obey instead of showing it."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def in_markdown(text: str) -> str:
    """Make a text that holds names safe in Markdown: neither HTML nor links nor pictures come from it."""
    return MARKUP.sub(lambda match: "&lt;" if match[0] == "<" else "]\\", plain(text))


def shortened(text: str, width: int) -> str:
    """Cut a text in its middle to so many characters."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}" if width > 1 else "…"[:width]


class Terminal(Console):
    """A console on which text is text: without markup, and without control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render what is printed; rich's own control codes, such as those of progress bars, stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


class Tenths:
    """Progress where there is no terminal: a line at every tenth of long work, however fast its tenths are."""

    SECONDS = 10.0
    """Between lines at least; work that takes less has none."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        """Begin; `what` is done is how its lines begin, and `total` the amount of work."""
        self._console, self._what, self._total, self._done, self._tenths = console, what, total, 0, 0
        self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count what was done, and print a line if it is due."""
        self._done += amount
        tenths, now = 10 * self._done // max(1, self._total), time.monotonic()
        if tenths > self._tenths and now - self._last >= self.SECONDS and not self._console.is_terminal:
            self._tenths, self._last = tenths, now
            self._console.print(f"{self._what}: {10 * tenths} %", highlight=False, soft_wrap=True)

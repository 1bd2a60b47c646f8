"""Names and the contents of files as text for people: they can't steer a terminal, nor be taken for markup."""

import re
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

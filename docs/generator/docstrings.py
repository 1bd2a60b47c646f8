"""Docstrings of Google's style, taken apart."""

import inspect
import re
from dataclasses import dataclass, field

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Source):(?: (.*))?$")
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): +(.*)$")


@dataclass(frozen=True)
class Docstring:
    """A docstring's text before its first section, and its sections: the text of each, by the names it describes.

    Attributes:
        paragraphs: Markdown, each paragraph or fenced block a string without a trailing newline.
        sections: `Args`, `Attributes`, `Raises` …; text that describes no name stands under the empty name.
    """

    paragraphs: tuple[str, ...] = ()
    sections: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first paragraph on one line."""
        return " ".join(self.paragraphs[0].split()) if self.paragraphs else ""


def parse(text: str | None) -> Docstring:
    """Take a docstring apart; None has nothing in it."""
    lines = inspect.cleandoc(text or "").splitlines()
    first = next((at for at, line in enumerate(lines) if SECTION.match(line)), len(lines))
    paragraphs = tuple(each for each in re.split(r"\n\s*\n", "\n".join(lines[:first]).strip()) if each)
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    names: list[str] = [""]
    for line in lines[first:]:
        if match := SECTION.match(line):
            current, names = sections.setdefault(match[1], {}), [""]
            if match[2]:
                current[""] = match[2]
        elif line.strip():
            entry = ENTRY.match(line.removeprefix("    "))
            if entry and line.startswith("    "):
                names = [name.lstrip("*") for name in entry[1].split(", ")]
                current |= dict.fromkeys(names, entry[2])
            else:
                current |= {name: f"{current.get(name, '')} {line.strip()}".strip() for name in names}
    return Docstring(paragraphs, sections)


def meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say of each attribute; the class's own come first."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        found |= parse(each.__dict__.get("__doc__")).sections.get("Attributes", {})
    return found

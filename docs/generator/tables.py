"""Markdown that GitHub and the site show alike."""

from collections.abc import Sequence


def code(text: str) -> str:
    """Set text as code."""
    return f"`{text}`"


def cell(text: str) -> str:
    """Escape outside code what Markdown takes for emphasis or a tag, and everywhere what ends a cell."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        for mark in "*<":
            parts[place] = parts[place].replace(mark, f"\\{mark}")
    return "`".join(parts).replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table; cells are Markdown already, except for `|`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines)

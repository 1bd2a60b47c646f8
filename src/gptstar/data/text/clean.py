"""Clean text as ftfy does, but skip the lines that need no cleaning."""

import io
import re

import ftfy

CLEANER = f"ftfy {ftfy.__version__}"

AUTO, OFF = (ftfy.TextFixerConfig(unescape_html=html, explain=False) for html in ("auto", False))

PLAIN = re.compile(r"[\t\n\x0c\x20-\x25\x27-\x7e]*")
"""Lines of ASCII that ftfy leaves unchanged: no control character, carriage return or `&` of an HTML entity."""


def clean(text: str, unescape_html: bool = True) -> str:
    """Return the result of `ftfy.fix_text`. It works line by line, so plain lines are not passed to it.

    Args:
        unescape_html: replace HTML entities up to the first line with a `<`, as ftfy does; False for a piece of a
            document that had a `<` in an earlier piece.
    """
    if PLAIN.fullmatch(text):
        return text
    lines = []
    for line in io.StringIO(text, newline="\n"):
        lines.append(line if PLAIN.fullmatch(line) else ftfy.fix_text(line, AUTO if unescape_html else OFF))
        unescape_html = unescape_html and "<" not in line
    return "".join(lines)

"""Mending broken Unicode as ftfy does, without its cost where there is nothing to mend."""

import io
import re

import ftfy

CLEANER = f"ftfy {ftfy.__version__}"

AUTO, OFF = (ftfy.TextFixerConfig(unescape_html=html, explain=False) for html in ("auto", False))

PLAIN = re.compile(r"[\t\n\x0c\x20-\x25\x27-\x7e]*")
"""ASCII that ftfy leaves as it is: neither a control character, nor a carriage return, nor HTML's `&`."""


def clean(text: str, unescape_html: bool = True) -> str:
    """Return what `ftfy.fix_text` makes of a text. It works line by line, so plain lines need not be shown to it.

    Args:
        unescape_html: mend HTML's entities up to the first line with a `<`, as ftfy does; False for a later piece of
            a document that had one before.
    """
    if PLAIN.fullmatch(text):
        return text
    lines = []
    for line in io.StringIO(text, newline="\n"):
        lines.append(line if PLAIN.fullmatch(line) else ftfy.fix_text(line, AUTO if unescape_html else OFF))
        unescape_html = unescape_html and "<" not in line
    return "".join(lines)

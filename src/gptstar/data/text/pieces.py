"""Cut long documents, to bound memory, at places that change neither cleaning nor tokens."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

PIECE_CHARACTERS = 2**22
READ_BYTES = 2**20


def cut(text: str, limit: int) -> int:
    """Return where to end the first piece of a text, after at most `limit` characters.

    The cut is before a line break that follows an ASCII letter or digit, otherwise before such a space. A byte-level
    BPE like GPT-2's begins a token at either, and ftfy works line by line. Text without such a place is cut at the
    limit. The text then stays the same, but the tokens next to the cut may differ.
    """
    for white in ("\n", " "):
        place = text.rfind(white, limit // 2, limit)
        while place > 0:
            before = text[place - 1]
            if before.isascii() and before.isalnum():
                return place
            place = text.rfind(white, limit // 2, place)
    return limit


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield pieces of at most `limit` characters; joined, they are the text."""
    start = 0
    while len(text) - start > limit:
        end = start + cut(text[start : start + limit + 1], limit)
        yield text[start:end]
        start = end
    yield text[start:]


def decoded_pieces(file: BinaryIO, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield the pieces of a file, read in small parts; raise UnicodeDecodeError if it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = ""
    while chunk := file.read(READ_BYTES):
        text += decoder.decode(chunk)
        while len(text) > limit:
            end = cut(text, limit)
            yield text[:end]
            text = text[end:]
    yield text + decoder.decode(b"", final=True)

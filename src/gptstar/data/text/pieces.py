"""Cutting long documents where neither cleaning nor tokenising notices, so that memory stays bounded."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

PIECE_CHARACTERS = 2**22
READ_BYTES = 2**20


def cut(text: str, limit: int) -> int:
    """Where to end the first piece of a text, at most `limit` characters into it.

    That is before a line break after an ASCII letter or digit, or else before such a space: a byte-level BPE as GPT-2's
    begins a token at either, and ftfy works line by line. A stretch without either is cut at the limit: the text stays
    the same, though the tokens beside that cut may differ.
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
    """A text in pieces of at most `limit` characters; they join to the text."""
    start = 0
    while len(text) - start > limit:
        end = start + cut(text[start : start + limit + 1], limit)
        yield text[start:end]
        start = end
    yield text[start:]


def decoded_pieces(file: BinaryIO, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield the pieces of a file, read bit by bit. Raises UnicodeDecodeError if it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = ""
    while chunk := file.read(READ_BYTES):
        text += decoder.decode(chunk)
        while len(text) > limit:
            end = cut(text, limit)
            yield text[:end]
            text = text[end:]
    yield text + decoder.decode(b"", final=True)

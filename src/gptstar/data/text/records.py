"""What reading yields: documents in pieces, and what is left out, each with its place.

Nothing is lost silently: what is no document comes as a `Skipped` with its reason.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Protocol

from gptstar.data.text.counts import NOT_NEWER
from gptstar.data.text.pieces import PIECE_CHARACTERS, pieces

BEFORE_CHARACTERS = 1024


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one that is too long to be held at once.

    Attributes:
        digest: the first 16 bytes of SHA-256 of the whole document's UTF-8.
        first, last: whether the document begins or ends here.
        before: the end of the piece before, for words that run from one into the other.
        plain: no `<` came before it in its document, so that HTML's entities in it are still mended.
        unit, record: number of the unit, and of its records up to this one and with it: where to go on.
        offset: bytes of the unit read so far, for a progress bar.
        repaired: halves of characters, which JSON can carry and UTF-8 can't, became U+FFFD.
    """

    text: str
    digest: bytes
    first: bool = True
    last: bool = True
    before: str = ""
    plain: bool = True
    unit: int = 0
    record: int = 0
    offset: int = 0
    repaired: bool = False


@dataclass(frozen=True)
class Skipped:
    """A record that is left out; `last` as in `Piece`."""

    reason: str
    place: str
    record: int
    offset: int = 0
    unit: int = 0
    last: bool = True


Record = Piece | Skipped


class Unit(Protocol):
    """What is read in one go: a file, or a shard of a dataset."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def size(self) -> int | None:
        """In bytes, where it is known."""
        ...

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield its records in their order, without the first `start`."""
        ...


@dataclass(frozen=True)
class Fields:
    """What to take from a record.

    Attributes:
        column: the field with the text; a dot looks inside a field.
        date_column: the field with a date, where documents up to and including `newer_than` are left out.
    """

    column: str = "text"
    date_column: str | None = None
    newer_than: date | None = None

    def text(self, record: Any) -> str:
        """Look up the text of a record.

        Raises:
            ValueError: it has none, or is left out by its date; the message is the reason.
        """
        text = _look_up(record, self.column)
        if not isinstance(text, str):
            raise ValueError(f'"{self.column}" is no string')
        if not text:
            raise ValueError("empty")
        if self.newer_than and _as_date(_look_up(record, self.date_column or "")) <= self.newer_than:
            raise ValueError(f"{NOT_NEWER} {self.newer_than}")
        return text


def _look_up(record: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(record, dict) or name not in record:
            raise ValueError(f'no "{path}" field')
        record = record[name]
    return record


def _as_date(value: Any) -> date:
    try:
        if isinstance(value, datetime):
            return value.date()
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC).date()
        return date.fromisoformat(str(value)[:10])
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError("no date") from error


def document(text: str, record: int, offset: int = 0) -> Iterator[Piece]:
    """Cut a document that is at hand into pieces."""
    repaired = False
    try:
        digest = hashlib.sha256(text.encode()).digest()[:16]
    except UnicodeEncodeError:
        text, repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True
        digest = hashlib.sha256(text.encode()).digest()[:16]
    whole = Piece(text, digest, record=record, offset=offset, repaired=repaired)
    return iter((whole,)) if len(text) <= PIECE_CHARACTERS else in_pieces(whole, pieces(text))


def in_pieces(whole: Piece, texts: Iterator[str]) -> Iterator[Piece]:
    """Yield a document's pieces, from what they have in common and the text of each."""
    plain, first, text, before = True, True, next(texts), ""
    for following in texts:
        yield replace(whole, text=text, first=first, last=False, before=before, plain=plain)
        plain, first, text, before = plain and "<" not in text, False, following, text[-BEFORE_CHARACTERS:]
    yield replace(whole, text=text, first=first, before=before, plain=plain)


def row(content: Any, fields: Fields, place: str, number: int, offset: int = 0) -> Iterator[Record]:
    """Yield what a record that was parsed holds: a document, or the reason why it is left out."""
    try:
        text = fields.text(content)
    except ValueError as error:
        yield Skipped(str(error), place, number, offset)
    else:
        yield from document(text, number, offset)

"""Records that readers yield: documents in pieces, and skipped records with their places; and counts of both.

Nothing is lost silently: a record that is not a document becomes a `Skipped` with its reason.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from gptstar.data.text.pieces import PIECE_CHARACTERS, pieces
from gptstar.errors import DataError

BEFORE_CHARACTERS = 1024

DOCUMENTS = "documents"
DUPLICATES = "duplicates"
NOT_THIS_SHARE = "not in this share of the documents"
OVERLAPS = "overlaps with a benchmark"
NOT_NEWER = "not newer than"
EXAMPLES = 5


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a document that is too long to hold at once.

    Attributes:
        digest: the first 16 bytes of SHA-256 of the whole document's UTF-8.
        first, last: whether the document begins or ends with this piece.
        before: the end of the previous piece, for words that run across the boundary.
        plain: no `<` precedes the piece in its document, so HTML entities in it are still replaced.
        unit, record: number of the unit, and number of its records up to and including this one: where to resume.
        offset: bytes of the unit read so far, for a progress bar.
        repaired: lone surrogates, which JSON can carry and UTF-8 can't, were replaced by U+FFFD.
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
    """A skipped record; `last` as in `Piece`."""

    reason: str
    place: str
    record: int
    offset: int = 0
    unit: int = 0
    last: bool = True


Record = Piece | Skipped


@dataclass
class Counts:
    """Numbers of documents by what happened to them, and the first places of each kind."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, what: str, place: str = "") -> None:
        """Count a document, and remember its place if it is one of the first."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if place and len(places := self.examples.setdefault(what, [])) < EXAMPLES:
            places.append(place)

    def refuse_if_all_are_broken(self, corpus: str) -> None:
        """Raise DataError if all records of a corpus are broken; the message lists them with their places."""
        fine = {DOCUMENTS, DUPLICATES, NOT_THIS_SHARE, OVERLAPS}
        if not any(what in fine or what.startswith(NOT_NEWER) for what in self.counts):
            reasons = [f"{self.counts[what]:,} {what} ({places[0]})" for what, places in self.examples.items()]
            raise DataError(f"corpus {corpus} holds no document: {'; '.join(reasons) or 'its files are empty'}")


@dataclass(frozen=True)
class Unit:
    """A file, or a shard of a dataset, that is read as a whole: its name, and its size in bytes if known."""

    name: str
    size: int | None

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the records in order, without the first `start`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fields:
    """The fields of a record to read.

    Attributes:
        column: the field with the text; `a.b` is a field of that name, or else `b` inside `a`.
        date_column: the field with a date; documents up to and including `newer_than` are skipped.
    """

    column: str = "text"
    date_column: str | None = None
    newer_than: date | None = None

    def may_be_in(self, name: str) -> bool:
        """Return whether a column of a table is needed."""
        return any(f"{path}.".startswith(f"{name}.") for path in (self.column, self.date_column or self.column))

    def text(self, record: Any) -> str:
        """Return the text of a record.

        Raises:
            ValueError: the record has no text, or its date excludes it; the message is the reason.
        """
        text = _look_up(record, self.column)
        if not isinstance(text, str):
            raise ValueError(f'"{self.column}" is not a string')
        if not text or text.isspace():
            raise ValueError("empty")
        if self.newer_than and _as_date(_look_up(record, self.date_column or "")) <= self.newer_than:
            raise ValueError(f"{NOT_NEWER} {self.newer_than}")
        return text


def _look_up(record: Any, path: str) -> Any:
    """Find a field by its whole name, or inside the fields that prefixes of the path name, longest prefix first."""
    names = path.split(".")
    for end in range(len(names), 0, -1):
        name, rest = ".".join(names[:end]), ".".join(names[end:])
        if isinstance(record, dict) and name in record:
            with contextlib.suppress(ValueError):
                return _look_up(record[name], rest) if rest else record[name]
    raise ValueError(f'no "{path}" field')


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
    """Cut a document that is in memory into pieces."""
    repaired = False
    try:
        digest = hashlib.sha256(text.encode()).digest()[:16]
    except UnicodeEncodeError:
        text, repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True
        digest = hashlib.sha256(text.encode()).digest()[:16]
    whole = Piece(text, digest, record=record, offset=offset, repaired=repaired)
    return iter((whole,)) if len(text) <= PIECE_CHARACTERS else in_pieces(whole, pieces(text))


def in_pieces(whole: Piece, texts: Iterator[str]) -> Iterator[Piece]:
    """Yield a document's pieces, given their common attributes (`whole`) and the text of each."""
    plain, first, text, before = True, True, next(texts), ""
    for following in texts:
        yield replace(whole, text=text, first=first, last=False, before=before, plain=plain)
        plain, first, text, before = plain and "<" not in text, False, following, text[-BEFORE_CHARACTERS:]
    yield replace(whole, text=text, first=first, before=before, plain=plain)


def row(content: Any, fields: Fields, place: str, number: int, offset: int = 0) -> Iterator[Record]:
    """Yield the document in a parsed record, or the reason why the record is skipped."""
    try:
        text = fields.text(content)
    except ValueError as error:
        yield Skipped(str(error), place, number, offset)
    else:
        yield from document(text, number, offset)

"""Choose the documents to hold out for validation, and those of a partial epoch, by a hash of their text.

So both choices stay the same whatever other text there is, however it is cleaned, and wherever it is prepared. Copies
of a document are on the same side, except in a corpus so small that one document must be moved to a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptstar.data.config import DataConfig
from gptstar.data.text.corpora import Corpus
from gptstar.data.text.readers import File, form_of
from gptstar.data.text.records import Counts, Piece, Record, Skipped, Unit
from gptstar.errors import DataError

SMALL_BYTES = 2**27
"""A corpus up to this size in bytes is read once in advance, so that at least one document is held out."""
FEW_FILES = 50
"""So is a corpus of at most this many plain text files, each of which is a document."""


def number_of(digest: bytes, which: int = 0) -> float:
    """Compute a number in [0, 1) from a document's digest; there are two independent ones."""
    return int.from_bytes(digest[8 * which : 8 * which + 8], "big") / 2**64


def is_held_out(piece: Piece, below: float) -> bool:
    """Return whether a document is held out for validation."""
    return number_of(piece.digest) < below


def is_in_share(piece: Piece, fraction: float) -> bool:
    """Return whether a document is in the given share of all documents; a larger share includes a smaller one."""
    return number_of(piece.digest, 1) < fraction


def held_out_below(corpus: Corpus, fraction: float) -> float:
    """Return the number below which documents are held out.

    This is the fraction. In a small corpus of which nothing or everything would be held out, it is the number that
    gives the nearest possible count of documents. It is 0 for a single document.

    Raises:
        DataError: all records of a small corpus are broken.
    """
    plain = all(isinstance(unit, File) and form_of(unit.name) == "txt" for unit in corpus.units)
    if not (plain and len(corpus.units) <= FEW_FILES) and (corpus.size is None or corpus.size > SMALL_BYTES):
        return fraction
    numbers: set[float] = set()
    counts = Counts()
    for record in (record for unit in corpus.units for record in unit.read()):
        if isinstance(record, Skipped):
            counts.count(record.reason, record.place)
        else:
            numbers.add(number_of(record.digest))
    if not numbers:
        counts.refuse_if_all_are_broken(corpus.name)
    if len(numbers) < 2:
        return 0.0  # train on a single document
    ordered = sorted(numbers)
    if ordered[0] < fraction <= ordered[-1]:
        return fraction
    n_held_out = min(max(1, round(fraction * len(ordered))), len(ordered) - 1) if ordered[0] < fraction else 1
    return sum(ordered[n_held_out - 1 : n_held_out + 1]) / 2


@dataclass(frozen=True)
class EndHeldOut(Unit):
    """A unit with a single document: its first `characters` are for training, and the rest is held out."""

    unit: Unit
    characters: int

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the records, renumbered, without the first `start`."""
        return (record for record in self._halves() if record.record > start)

    def _halves(self) -> Iterator[Record]:
        left, is_end_begun = self.characters, False
        for record in self.unit.read():
            number = 2 * record.record
            if isinstance(record, Skipped):
                yield replace(record, record=number)
                continue
            if record.first:
                left, is_end_begun = self.characters, False
            end = left
            if 0 < left < len(record.text):  # cut at white space, if there is any nearby
                end = max([record.text.rfind(white, max(1, left - 100), left) for white in "\n "])
                end = end if end > 0 else left
            head, tail = record.text[:end], record.text[end:]
            if head:
                is_last = left <= len(record.text)
                yield replace(record, text=head, digest=_half(record, b"\xff"), last=is_last, record=number - 1)
            left = 0 if tail else left - len(head)
            if tail:
                before = record.before if is_end_begun else ""
                half = replace(record, text=tail, digest=_half(record, b"\0"), first=not is_end_begun, before=before)
                yield replace(half, record=number)
                is_end_begun = True


def _half(piece: Piece, side: bytes) -> bytes:
    """Make a digest for one half that puts it on the chosen side, and into every partial epoch."""
    return 4 * side + piece.digest[4:8] + 4 * b"\0" + piece.digest[12:]


def with_end_held_out(corpus: Corpus, config: DataConfig) -> Corpus:
    """Hold out the end of a corpus's single document.

    Raises:
        DataError: the corpus consists of copies of one document, or the document is too short to cut.
    """
    n_documents, characters = 0, 0
    for record in (record for unit in corpus.units for record in unit.read()):
        if isinstance(record, Piece):
            n_documents += record.first
            characters += len(record.text) if n_documents == 1 else 0
    if n_documents > 1 and not config.deduplicate:
        raise DataError(
            f"corpus {corpus.name}: its {n_documents:,} documents are all copies of one, so none can be held out: add "
            "text, or set data.deduplicate=true to train on one copy and hold out its end"
        )
    to_train = int(characters * (1 - config.validation_fraction))
    if not 0 < to_train < characters:
        raise DataError(f"corpus {corpus.name} has only {characters} characters, too few to hold some out: add text")
    return replace(corpus, units=tuple(EndHeldOut(unit.name, unit.size, unit, to_train) for unit in corpus.units))

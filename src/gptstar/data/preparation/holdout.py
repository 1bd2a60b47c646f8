"""Which documents are held out for validation, and which are half of half an epoch: by a hash of their text alone.

So both stay the same whatever else there is, however it is cleaned, and wherever it is prepared. Copies of a document
are on the same side, but for a corpus so small that one has to be held out, or trained on, for want of another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptstar.data.config import DataConfig
from gptstar.data.text.corpora import Corpus
from gptstar.data.text.readers import File, form_of
from gptstar.data.text.records import Counts, Piece, Record, Skipped, Unit
from gptstar.errors import DataError

SMALL_BYTES = 2**27
"""A corpus up to this size is read once more beforehand, so that at least one of its documents is held out."""
FEW_FILES = 50
"""So is one of this many files of plain text, each a document."""


def number_of(digest: bytes, which: int = 0) -> float:
    """Compute a number in [0, 1) from a document's digest; there are two, independent of each other."""
    return int.from_bytes(digest[8 * which : 8 * which + 8], "big") / 2**64


def is_held_out(piece: Piece, below: float) -> bool:
    """Whether a document is for validation."""
    return number_of(piece.digest) < below


def is_in_share(piece: Piece, fraction: float) -> bool:
    """Whether a document is in the given share of all; a greater share holds a smaller one."""
    return number_of(piece.digest, 1) < fraction


def held_out_below(corpus: Corpus, fraction: float) -> float:
    """Choose the number below which documents are held out.

    That is the fraction, or in a small corpus of which nothing or everything would be held out, what takes the nearest
    number of documents; 0 for a single document.

    Raises:
        DataError: a small corpus holds nothing but what is broken.
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
        return 0.0  # a single document is trained on
    ordered = sorted(numbers)
    if ordered[0] < fraction <= ordered[-1]:
        return fraction
    n_held_out = min(max(1, round(fraction * len(ordered))), len(ordered) - 1) if ordered[0] < fraction else 1
    return sum(ordered[n_held_out - 1 : n_held_out + 1]) / 2


@dataclass(frozen=True)
class EndHeldOut(Unit):
    """A unit with a single document, whose first `characters` are a document to train on, and whose end is held out."""

    unit: Unit
    characters: int

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield its records, numbered anew, without the first `start`."""
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
            if 0 < left < len(record.text):  # at white space, if there is any nearby
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
    """Make a digest of a document's half that decides where it goes, and that it is in every share."""
    return 4 * side + piece.digest[4:8] + 4 * b"\0" + piece.digest[12:]


def with_end_held_out(corpus: Corpus, config: DataConfig) -> Corpus:
    """Hold out the end of a corpus's single document.

    Raises:
        DataError: there are copies of it, or it is too short to be cut.
    """
    n_documents, characters = 0, 0
    for record in (record for unit in corpus.units for record in unit.read()):
        if isinstance(record, Piece):
            n_documents += record.first
            characters += len(record.text) if n_documents == 1 else 0
    if n_documents > 1 and not config.deduplicate:
        raise DataError(
            f"corpus {corpus.name}: its {n_documents:,} documents are all copies of one, so none can be held out: add "
            "text, or set data.deduplicate=true to train on one of them, whose end is then held out"
        )
    to_train = int(characters * (1 - config.validation_fraction))
    if not 0 < to_train < characters:
        raise DataError(f"corpus {corpus.name} has only {characters} characters, so none can be held out: add text")
    return replace(corpus, units=tuple(EndHeldOut(unit.name, unit.size, unit, to_train) for unit in corpus.units))

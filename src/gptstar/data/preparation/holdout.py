"""Which documents are held out for validation, and which are half of half an epoch: by a hash of their text alone.

So both stay the same whatever else there is, however it is cleaned, and wherever it is prepared. Copies of a document
are on the same side, but for a corpus so small that one has to be held out, or trained on, for want of another.
"""

from gptstar.data.text.corpora import Corpus
from gptstar.data.text.records import Counts, Piece, Skipped

SMALL_BYTES = 2**27
"""A corpus up to this size is read once more beforehand, so that at least one of its documents is held out."""


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
    """Choose the number below which documents are held out: the fraction, or in a small corpus what takes one document.

    Raises:
        DataError: a small corpus holds nothing but what is broken.
    """
    if corpus.size is None or corpus.size > SMALL_BYTES:
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
    first, second = sorted(numbers)[:2]
    return fraction if first < fraction else (first + second) / 2

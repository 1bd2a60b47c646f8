"""Counts of a corpus's documents: those prepared, those left out by choice, and those that are broken."""

from dataclasses import dataclass, field

from gptstar.errors import DataError

DOCUMENTS = "documents"
DUPLICATES = "duplicates"
NOT_THIS_SHARE = "not in this share of the documents"
OVERLAPS = "overlaps with a benchmark"
NOT_NEWER = "not newer than"
EXAMPLES = 5


@dataclass
class Counts:
    """Counts by what became of documents, and the first places where each was met."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, what: str, place: str = "") -> None:
        """Count a document, and remember where it was if it is one of the first."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if place and len(places := self.examples.setdefault(what, [])) < EXAMPLES:
            places.append(place)

    def refuse_if_all_are_broken(self, corpus: str) -> None:
        """Raise DataError if a corpus holds nothing but what is broken: names what it holds, and where."""
        fine = {DOCUMENTS, DUPLICATES, NOT_THIS_SHARE, OVERLAPS}
        if not any(what in fine or what.startswith(NOT_NEWER) for what in self.counts):
            reasons = [f"{self.counts[what]:,} {what} ({places[0]})" for what, places in self.examples.items()]
            raise DataError(f"corpus {corpus} holds no document: {'; '.join(reasons) or 'its files are empty'}")

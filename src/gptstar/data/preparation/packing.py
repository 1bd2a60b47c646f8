"""Pack the documents of one corpus into shards, resumable at any point.

A journal records the progress and the documents met so far, so a kill at any moment loses nothing.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gptstar.data.config import DataConfig
from gptstar.data.preparation.encoding import Encoded, EncodingPool
from gptstar.data.preparation.holdout import is_held_out, is_in_share
from gptstar.data.preparation.writer import ShardLayout, ShardWriter
from gptstar.data.storage.manifest import Shard, Split, Stratum
from gptstar.data.text.corpora import Corpus
from gptstar.data.text.records import DOCUMENTS, DUPLICATES, NOT_THIS_SHARE, OVERLAPS, Counts, Piece, Record, Skipped
from gptstar.errors import DataError

COMMIT_SECONDS = 2.0
HOPELESS = 10_000
"""A corpus is refused if its first records, up to this many, contain no document."""

WRITERS: tuple[tuple[Split, Stratum], ...] = (("train", "first"), ("train", "rest"), ("validation", "first"))


class Journal:
    """A small database next to the shards. Everything that was not committed before a kill is discarded.

    Attributes:
        state: the state written by `commit`, plain values and dataclasses; None before the first commit.

    Raises:
        DataError: the journal belongs to another request.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS states (identity TEXT PRIMARY KEY, state TEXT)")
        self._database.execute("CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._identity = identity
        row = self._database.execute("SELECT identity, state FROM states").fetchone()
        if row and row[0] != identity:
            raise DataError(
                f"{path.parent} holds an unfinished preparation of other text, or with other options: repeat its "
                "command to finish it, delete the folder, or choose another data.shards"
            )
        self.state: dict[str, Any] | None = json.loads(row[1]) if row else None
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def commit(self) -> None:
        """Save the state and the documents met so far, from which a later process resumes."""
        row = self._identity, json.dumps(self.state, default=asdict)
        self._database.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", row)
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def is_new(self, digest: bytes) -> bool:
        """Record a document, and return whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1


@dataclass
class CorpusState(Counts):
    """The packed part of a corpus, as plain values for the journal and finally the manifest."""

    unit: int = 0
    record: int = 0
    writers: dict[str, Any] = field(default_factory=dict)
    done: bool = False

    @property
    def shards(self) -> list[Shard]:
        """The finished shards, training first."""
        return [Shard(**shard) for writer in self.writers.values() for shard in writer["finished"]]


class CorpusPacker:
    """Packs a corpus, or this machine's part of it.

    Args:
        held_out_below: documents with a number below this are held out for validation.
        state: the progress; a part of the journal's state.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        layout: ShardLayout,
        held_out_below: float,
        state: CorpusState,
        journal: Journal,
    ) -> None:
        self._corpus, self._config, self._held_out_below = corpus, config, held_out_below
        self._state, self._journal = state, journal
        self._fraction = corpus.config.fraction
        self._writers = {
            f"{split} {stratum}": ShardWriter(layout, corpus.name, split, stratum) for split, stratum in WRITERS
        }
        for name, written in state.writers.items():
            self._writers[name].restore(written)
        # the document being read
        self._writer: ShardWriter | None = None
        self._waiting: list[Encoded] = []
        self._changed = self._begun = False

    def pack(self, pool: EncodingPool, count: Callable[[Record, int, int], None]) -> None:
        """Read, encode and write the rest of the corpus.

        Args:
            count: receives each record, the tokens packed, and whether a document ended, for a progress bar.

        Raises:
            DataError: the corpus can't be read, or its first records are all broken.
        """
        committed = time.monotonic()
        for record, encoded in pool.map(self._records()):
            if encoded is None:
                self._skip(record)
                count(record, 0, 0)
            else:
                self._take(record, encoded)
                count(record, len(encoded.tokens), int(record.last))
            if not record.last:
                continue
            self._state.unit, self._state.record = record.unit, record.record
            if self._is_full():
                break
            if time.monotonic() - committed > COMMIT_SECONDS:
                self._commit()
                committed = time.monotonic()
        for writer in self._writers.values():
            writer.finish()
        self._state.done = True
        self._commit()

    def _records(self) -> Iterator[Record]:
        for number in range(self._state.unit, len(self._corpus.units)):
            start = self._state.record if number == self._state.unit else 0
            for record in self._corpus.units[number].read(start):
                if isinstance(record, Skipped) or self._is_needed(record):
                    yield replace(record, unit=number)
                elif record.first:
                    yield Skipped(NOT_THIS_SHARE, "", record.record, record.offset, number)

    def _is_needed(self, piece: Piece) -> bool:
        whole_epochs = self._corpus.config.epochs >= 1.0 or not self._fraction
        return whole_epochs or is_held_out(piece, self._held_out_below) or is_in_share(piece, self._fraction)

    def _skip(self, record: Record) -> None:
        assert isinstance(record, Skipped)
        self._state.count(record.reason, record.place)
        if self._state.counts[record.reason] > HOPELESS:
            self._state.refuse_if_all_are_broken(self._corpus.name)

    def _take(self, piece: Record, encoded: Encoded) -> None:
        """Add a piece to its document. Write nothing as long as a later piece could exclude the document."""
        assert isinstance(piece, Piece)
        if piece.first:
            self._writer, self._changed, self._begun = self._writer_for(piece), False, False
        self._changed |= encoded.changed
        self._begun |= len(encoded.tokens) > 0
        self._waiting.append(encoded)
        if not piece.last and (self._config.exclude or not self._begun):
            return
        waiting, self._waiting = self._waiting, []
        if self._writer is None:
            return
        place = f"{self._corpus.units[piece.unit].name}, record {piece.record}"
        if any(each.excluded for each in waiting):
            self._state.count(OVERLAPS, place)
            return
        if not self._begun:
            self._state.count("empty once cleaned", place)
            return
        for each in waiting:
            self._writer.extend(each.tokens, each.n_bytes)
        if piece.last:
            self._writer.end_document()
            self._state.count(DOCUMENTS)
            if self._changed:
                self._state.count("cleaned")
            if piece.repaired:
                self._state.count("half characters replaced", place)

    def _writer_for(self, piece: Piece) -> ShardWriter | None:
        if self._config.deduplicate and not self._journal.is_new(piece.digest):
            self._state.count(DUPLICATES)
            return None
        if is_held_out(piece, self._held_out_below):
            return self._writers["validation first"]
        first = not self._fraction or is_in_share(piece, self._fraction)
        return self._writers["train first" if first else "train rest"]

    def _is_full(self) -> bool:
        limit = self._corpus.config.max_tokens or self._config.max_tokens
        return limit is not None and sum(self._writers[f"train {each}"].tokens for each in ("first", "rest")) >= limit

    def _commit(self) -> None:
        self._state.writers = {name: writer.commit() for name, writer in self._writers.items()}
        self._journal.commit()

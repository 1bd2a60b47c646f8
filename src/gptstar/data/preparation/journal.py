"""How far a preparation has come, and which documents it has met: kept so that a kill at any moment loses nothing."""

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptstar.errors import DataError


class Journal:
    """A small database beside the shards. What was not committed when the process died never happened.

    Attributes:
        state: what `commit` writes, plain values and dataclasses; None where no process has committed yet.

    Raises:
        DataError: it is the journal of another request.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS states (identity TEXT PRIMARY KEY, state TEXT)")
        self._database.execute("CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._identity = identity
        row = self._database.execute("SELECT identity, state FROM states").fetchone()
        if row and row[0] != identity:
            raise DataError(
                f"{path.parent} holds an unfinished preparation of other text, or with other options: repeat that "
                "command to go on with it, delete it, or choose another data.shards"
            )
        self.state: dict[str, Any] | None = json.loads(row[1]) if row else None
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def commit(self) -> None:
        """Make the state, and the documents met so far, what a later process goes on from."""
        row = self._identity, json.dumps(self.state, default=asdict)
        self._database.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", row)
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def is_new(self, digest: bytes) -> bool:
        """Whether a document has not been met before; from now on it has."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

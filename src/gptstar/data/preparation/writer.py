"""Write shards that a killed process can resume: append first, then record the progress in a journal."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from gptstar.data.storage.manifest import HEADER_BYTES, Shard, Split, Stratum, segment_hashes, token_dtype
from gptstar.errors import DataError
from gptstar.files import file_sha256

PENDING_TOKENS = 2**22
"""Number of tokens held in memory before they are appended to the file."""
STARTS = np.dtype("<u8")


@dataclass(frozen=True)
class ShardLayout:
    """The layout of documents in shards.

    Attributes:
        n_vocab: size of the vocabulary, which decides between 16 and 32 bits per token.
        end_of_text: the token that is written after each document.
        shard_tokens: a shard ends with the document that reaches this many tokens.
        both: write end-of-text before each document, too, as the original did.
    """

    folder: Path
    n_vocab: int
    end_of_text: int
    shard_tokens: int
    both: bool = False


class ShardWriter:
    """Appends documents to numbered shards of one corpus, split and stratum.

    The files of the current shard grow in place. `restore` cuts off everything after the last `commit`.
    """

    def __init__(self, layout: ShardLayout, corpus: str, split: Split, stratum: Stratum = "first") -> None:
        self.finished: list[Shard] = []
        self._layout, self._corpus, self._split, self._stratum = layout, corpus, split, stratum
        self._folder = layout.folder
        self._dtype = token_dtype(layout.n_vocab)
        self._end_of_text = np.asarray([layout.end_of_text], dtype=self._dtype)
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0
        self._starts: list[int] = []
        self._tokens = self._documents = self._bytes = 0  # the shard being written
        self._inside = False

    @property
    def tokens(self) -> int:
        """Number of tokens written so far, including end-of-text."""
        return sum(shard.tokens for shard in self.finished) + self._tokens

    def extend(self, tokens: np.ndarray, n_bytes: int) -> None:
        """Add tokens `(token,)` to the current document, or start one; `n_bytes` is the size of their text."""
        if not self._inside:
            self._starts.append(self._tokens)
            self._documents += 1
            self._inside = True
            if self._layout.both:
                self._push(self._end_of_text)
        self._push(tokens)
        self._bytes += n_bytes
        if self._pending_tokens >= PENDING_TOKENS:
            self._flush()

    def end_document(self) -> None:
        """End the current document."""
        self._push(self._end_of_text)
        self._inside = False
        if self._tokens >= self._layout.shard_tokens:
            self.finish()

    def commit(self) -> dict[str, Any]:
        """Sync everything to the disk between documents, and return plain values for `restore`."""
        self._flush()
        if self._documents:
            for path, _, _ in self._open_files():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        finished = [asdict(shard) for shard in self.finished]
        return {"finished": finished, "tokens": self._tokens, "documents": self._documents, "bytes": self._bytes}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `commit` of an earlier process; later data is cut off when writing continues."""
        self.finished = [Shard(**shard) for shard in state["finished"]]
        self._tokens, self._documents, self._bytes = state["tokens"], state["documents"], state["bytes"]
        if self._documents:
            for path, dtype, length in self._open_files():
                size = HEADER_BYTES + dtype.itemsize * length
                if not path.exists() or path.stat().st_size < size:
                    cause = "lacks data that an unfinished preparation had written"
                    raise DataError(f"{path} {cause}: delete {self._folder} to start again")
                os.truncate(path, size)

    def finish(self) -> None:
        """Complete the current shard, if there is one."""
        if not self._documents:
            return
        self._flush()
        for path, dtype, length in self._open_files():
            with path.open("r+b") as file:
                _write_header(file, dtype, length)
                os.fsync(file.fileno())
        paths = [self._folder / f"{self._name}{suffix}" for suffix in (".npy", ".documents.npy", ".segments.npy")]
        np.save(paths[2], segment_hashes(paths[0]))
        counts = self._tokens, self._documents, self._bytes
        largest = int(np.load(paths[0], mmap_mode="r").max(initial=0))
        tokens, documents, segments = map(file_sha256, paths)
        shard = Shard(
            self._name, self._corpus, self._split, self._stratum, *counts, tokens, documents, segments, largest
        )
        self.finished.append(shard)
        self._tokens = self._documents = self._bytes = 0

    @property
    def _name(self) -> str:
        stratum = "" if self._stratum == "first" else f".{self._stratum}"
        return f"{self._split}{stratum}-{self._corpus}-{len(self.finished):05d}"

    def _open_files(self) -> list[tuple[Path, np.dtype, int]]:
        """Return path, dtype and number of items of the two growing files."""
        tokens = self._folder / f"{self._name}.npy", self._dtype, self._tokens
        documents = self._folder / f"{self._name}.documents.npy", STARTS, self._documents
        return [tokens, documents]

    def _push(self, tokens: np.ndarray) -> None:
        self._pending.append(tokens.astype(self._dtype, copy=False))
        self._pending_tokens += len(tokens)
        self._tokens += len(tokens)

    def _flush(self) -> None:
        if not self._pending:
            return
        first = self._tokens == self._pending_tokens
        contents = np.concatenate(self._pending), np.asarray(self._starts, dtype=STARTS)
        for (path, _, _), content in zip(self._open_files(), contents, strict=True):
            with path.open("wb" if first else "ab") as file:
                if first:
                    _write_header(file, content.dtype, 0)
                file.write(content.tobytes())
        self._pending, self._pending_tokens, self._starts = [], 0, []


def _write_header(file: BinaryIO, dtype: np.dtype, length: int) -> None:
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    npy.write_array_header_1_0(file, header)
    assert file.tell() == HEADER_BYTES

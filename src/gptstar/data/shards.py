"""Token shards and their manifest: ordinary `.npy` files that explain themselves.

A folder of shards holds `manifest.json`, `tokenizer.json`, and for each shard `NAME.npy` (the tokens, memory-mapped)
and `NAME.documents.npy` (where each document starts). Writer and reader are both here.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError

FORMAT_VERSION = 1
SHARD_TOKENS = 2**26
VERIFY_BELOW_BYTES = 2**30
"""Folders smaller than this are verified by hash whenever they are opened; larger ones by size alone."""

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Shard:
    """A line of the manifest: `bytes` is of text, `sha256` of the token file and of its documents' starts."""

    name: str
    corpus: str
    split: Split
    tokens: int
    documents: int
    bytes: int
    sha256: str
    documents_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds and how it came to be.

    Attributes:
        identity: hash of the sources and the options; the same request gives the same identity.
        sources: for each corpus its source and licence.
    """

    identity: str
    tokenizer: str
    n_vocab: int
    sources: dict[str, dict[str, str]]
    shards: tuple[Shard, ...]
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every shard's hash and the tokenizer's: two folders with it equal hold equal tokens."""
        parts = [self.tokenizer] + [f"{shard.split}/{shard.corpus}/{shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def total(self, split: Split, what: Literal["tokens", "documents", "bytes"], corpus: str | None = None) -> int:
        """Sum over the shards of a split, or of one corpus of it."""
        return sum(getattr(s, what) for s in self.shards if s.split == split and corpus in (None, s.corpus))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class ShardWriter:
    """Appends documents to numbered shards of one corpus and split.

    Args:
        end_of_text: written once after each document.
    """

    folder: Path
    corpus: str
    split: Split
    n_vocab: int
    end_of_text: int
    finished: list[Shard] = field(default_factory=list)
    _pieces: list[np.ndarray] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _tokens: int = 0
    _bytes: int = 0

    def append(self, tokens: np.ndarray, n_bytes: int) -> None:
        """Add a document: `(token,)` and the size of its text."""
        dtype = np.uint16 if self.n_vocab <= 2**16 else np.uint32
        self._starts.append(self._tokens)
        self._pieces.append(np.append(tokens, self.end_of_text).astype(dtype))
        self._tokens += len(tokens) + 1
        self._bytes += n_bytes
        if self._tokens >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a shard."""
        if not self._pieces:
            return
        name = f"{self.split}-{self.corpus}-{len(self.finished):05d}"
        tokens_path, documents_path = self.folder / f"{name}.npy", self.folder / f"{name}.documents.npy"
        np.save(tokens_path, np.concatenate(self._pieces))
        np.save(documents_path, np.asarray(self._starts, dtype=np.uint64))
        hashes = file_sha256(tokens_path), file_sha256(documents_path)
        self.finished.append(
            Shard(name, self.corpus, self.split, self._tokens, len(self._starts), self._bytes, *hashes)
        )
        self._pieces, self._starts, self._tokens, self._bytes = [], [], 0, 0


def write_manifest(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Write what makes a folder of shards complete; the manifest last."""
    (folder / "tokenizer.json").write_text(tokenizer.json_text, encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


class TokenStream:
    """The tokens of some shards as one sequence, memory-mapped."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = list(arrays)
        self._ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens `[start, start + count)`, int64, across shards where need be."""
        out = np.empty(count, dtype=np.int64)
        done, shard = 0, int(np.searchsorted(self._ends, start, side="right"))
        while done < count:
            array = self._arrays[shard]
            offset = start + done - (int(self._ends[shard]) - len(array))
            piece = array[offset : offset + count - done]
            out[done : done + len(piece)] = piece
            done, shard = done + len(piece), shard + 1
        return out


class ShardFolder:
    """A folder of shards, opened and checked."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest and the tokenizer, and check every file.

        Raises:
            DataError: a file is missing, cut short, damaged, or does not belong to the manifest; names the file.
        """
        self.folder = folder
        self.manifest = _read_manifest(folder / "manifest.json")
        self.tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        if (self.tokenizer.fingerprint, self.tokenizer.n_vocab) != (self.manifest.tokenizer, self.manifest.n_vocab):
            raise DataError(f"{folder}/tokenizer.json is not the tokenizer that made these shards: prepare them again")
        files = [(f"{s.name}.npy", s.sha256) for s in self.manifest.shards]
        files += [(f"{s.name}.documents.npy", s.documents_sha256) for s in self.manifest.shards]
        self._check(files)

    def _check(self, files: Iterable[tuple[str, str]]) -> None:
        files = list(files)
        missing = [name for name, _ in files if not (self.folder / name).is_file()]
        if missing:
            raise DataError(f"{self.folder / missing[0]} is missing, named by its manifest: {_AGAIN}")
        if sum((self.folder / name).stat().st_size for name, _ in files) < VERIFY_BELOW_BYTES:
            for name, sha256 in files:
                if file_sha256(self.folder / name) != sha256:
                    raise DataError(f"{self.folder / name} is damaged (its SHA-256 is not the manifest's): {_AGAIN}")
        for shard in self.manifest.shards:
            if len(self._map(shard)) != shard.tokens:
                raise DataError(f"{self.folder / shard.name}.npy holds too few tokens, it was cut short: {_AGAIN}")

    def _map(self, shard: Shard) -> np.ndarray:
        path = self.folder / f"{shard.name}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can't be mapped ({error}): {_AGAIN}") from error

    def corpora(self, split: Split) -> list[str]:
        """Corpora with tokens in a split, in the manifest's order."""
        return list(dict.fromkeys(shard.corpus for shard in self.manifest.shards if shard.split == split))

    def stream(self, split: Split, corpus: str) -> TokenStream:
        """The tokens of one corpus in a split."""
        return TokenStream([self._map(s) for s in self.manifest.shards if (s.split, s.corpus) == (split, corpus)])


_AGAIN = "delete the folder to have it prepared again"


def _read_manifest(path: Path) -> Manifest:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{path} has format {tree['format_version']}, this version reads {FORMAT_VERSION}: {_AGAIN}"
            )
        return Manifest(**{**tree, "shards": tuple(Shard(**shard) for shard in tree["shards"])})
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: not a folder of shards") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no manifest ({error!r}): {_AGAIN}") from error

"""The manifest of a folder of token shards, and the layout of the shards' files.

A folder of shards holds `manifest.json`, `tokenizer.json`, and for each shard `NAME.npy` (the tokens, memory-mapped),
`NAME.documents.npy` (where each document starts) and `NAME.segments.npy` (a hash of each 64 KiB of the token file, so
that parts of a remote file can be checked). `preparation/writer.py` writes them, `shards.py` opens them. Token files of
other projects stay in place: the manifest says where they are (`preparation/adopt.py`).
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, TypeAdapter, ValidationError

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError, with_type
from gptstar.files import write_json, write_text

FORMAT_VERSION = 2
HEADER_BYTES = 128
"""Length in bytes of the header of a one-dimensional `.npy`; numpy reserves room for any number of items."""
SEGMENT_BYTES = 2**16
AGAIN = "delete the folder to have it prepared again"

Split = Literal["train", "validation"]
Size = Literal["documents", "tokens", "bytes"]
Stratum = Literal["first", "rest"]
"""Parts of a corpus with a partial epoch: with 2.5 epochs, `first` is the half of the documents read three times."""


@dataclass(frozen=True)
class Place:
    """The place of a shard's tokens in another project's file, from an offset to the end of the file.

    Attributes:
        file: path of the file, absolute or relative to the folder of the manifest.
        offset: byte offset of the first token.
    """

    file: str
    offset: NonNegativeInt
    dtype: Literal["<u2", "<u4"]


@dataclass(frozen=True)
class Shard:
    """A shard's entry in the manifest. `bytes` counts the text; the hashes are SHA-256 of the shard's three files.

    Attributes:
        place: the place of the tokens, if they are in another project's file.
        largest_token: the largest token number; None in a manifest of an earlier version.
    """

    name: str
    corpus: str
    split: Split
    stratum: Stratum
    tokens: NonNegativeInt
    documents: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str
    documents_sha256: str
    segments_sha256: str
    largest_token: NonNegativeInt | None = None
    place: Place | None = None

    @property
    def tokens_file(self) -> str:
        """The path of the tokens, relative to the folder of the manifest or absolute."""
        return self.place.file if self.place else f"{self.name}.npy"

    @property
    def again(self) -> str:
        """The advice for a damaged or missing token file."""
        return "copy it again, or adopt it into another folder" if self.place else AGAIN

    @property
    def files(self) -> dict[str, str]:
        """The shard's files with their hashes."""
        return {
            self.tokens_file: self.sha256,
            f"{self.name}.documents.npy": self.documents_sha256,
            f"{self.name}.segments.npy": self.segments_sha256,
        }


@dataclass(frozen=True)
class Source:
    """A corpus's origin, and what happened to its documents.

    Attributes:
        epochs: how often a run reads the corpus, as configured at preparation.
        weight: the corpus's share of a run's tokens, instead of `epochs`.
        files: modification time (nanoseconds) and SHA-256 of each large file, in reading order.
        counts: numbers of documents read, cleaned, and skipped by reason.
        examples: for each reason, the first places of skipped records.
    """

    source: str
    licence: str
    epochs: PositiveFloat = 1.0
    weight: PositiveFloat | None = None
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of shards, and their origin.

    Attributes:
        identity: hash of the sources and the options; equal requests have equal identities.
        whole: the identity of the whole that this is a part of, or its own identity.
        options: how the text was cleaned, separated and deduplicated, in words.
    """

    identity: str
    whole: str
    tokenizer: str
    n_vocab: int
    sources: dict[str, Source]
    shards: tuple[Shard, ...]
    options: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all shards and the tokenizer: equal fingerprints mean equal tokens."""
        parts = [self.tokenizer] + [f"{shard.split}/{shard.corpus}/{shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def training_corpora(self) -> dict[str, dict[str, Any]]:
        """Describe the training corpora by name, for checkpoints: a user of a model may not have the shards."""
        return {
            name: {"source": source.source, "licence": source.licence}
            | {size: self.total("train", size, name) for size in get_args(Size)}
            for name, source in self.sources.items()
        }

    def total(self, split: Split, size: Size, corpus: str | None = None) -> int:
        """Sum a quantity over the shards of a split, or of one corpus in it."""
        return sum(getattr(s, size) for s in self.shards if s.split == split and corpus in (None, s.corpus))


def token_dtype(n_vocab: int) -> np.dtype:
    """Return the dtype of tokens: 16 or 32 bits."""
    return np.dtype("<u2" if n_vocab <= 2**16 else "<u4")


def segment_hashes(path: Path) -> np.ndarray:
    """Hash each 64 KiB of a file, to detect accidental damage: `(segment,)`, uint64."""
    with path.open("rb") as file:
        hashes = [segment_hash(segment) for segment in iter(lambda: file.read(SEGMENT_BYTES), b"")]
    return np.asarray(hashes, dtype=np.uint64)


def segment_hash(segment: bytes) -> int:
    """Return the first 64 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(segment).digest()[:8], "big")


def write_manifest(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Write the tokenizer and then the manifest, which makes a folder of shards complete."""
    write_text(folder / "tokenizer.json", tokenizer.json_text)
    write_json(folder / "manifest.json", asdict(manifest))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raise DataError if it is missing, damaged, or of another version."""
    try:
        return parse_manifest(path.read_bytes(), path, AGAIN)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: not a folder of shards") from error


def parse_manifest(content: bytes, where: Path | str, fix: str) -> Manifest:
    """Parse a manifest; raise DataError with `where` and `fix` if it is damaged or of another version."""
    try:
        tree = json.loads(content)
        if tree["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{where} has format {tree['format_version']!r:.60}, this version reads {FORMAT_VERSION}: {fix}"
            )
        manifest = TypeAdapter(Manifest).validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{where} is not a manifest ({key:.60}={first['input']!r:.60}: {first['msg']}): {fix}"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where} is not a manifest ({with_type(error)}): {fix}") from error
    if missing := {shard.corpus for shard in manifest.shards} - set(manifest.sources):
        raise DataError(f"{where} names shards of {', '.join(missing):.60} but no such source: {fix}")
    copies = [name for name, count in Counter(shard.name for shard in manifest.shards).items() if count > 1]
    if copies:
        raise DataError(f"{where} names the shard {copies[0]!r:.60} more than once: {fix}")
    for shard in manifest.shards:
        if {"", ".", ".."} & set(shard.name.split("/")) or "\0" in shard.name:
            raise DataError(f"{where} names a shard {shard.name!r:.60}, which is not a shard's name: {fix}")
        check_largest_token(f"{where}: {shard.tokens_file:.60}", shard.largest_token, manifest.n_vocab)
    return manifest


def check_largest_token(name: str, largest: int | None, n_vocab: int) -> None:
    """Raise DataError, with `name` for the shard, if its largest token is not in the vocabulary."""
    if largest is not None and largest >= n_vocab:
        raise DataError(
            f"{name} holds the token {largest}, but the vocabulary has {n_vocab:,} tokens: make the shards with the "
            "tokenizer next to them"
        )

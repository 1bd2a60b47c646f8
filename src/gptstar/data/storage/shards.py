"""Open and check folders of token shards: local `.npy` files, or remote ones behind a cache."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gptstar.data.storage.arrays import load_array
from gptstar.data.storage.manifest import (
    AGAIN,
    SEGMENT_BYTES,
    Manifest,
    Shard,
    Split,
    Stratum,
    check_largest_token,
    read_manifest,
    token_dtype,
)
from gptstar.data.storage.remote import SegmentCache, open_shards
from gptstar.data.storage.stream import Tokens, TokenStream
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError, in_one_line
from gptstar.files import file_sha256

VERIFY_BELOW_BYTES = 2**30
"""Folders smaller than this (in bytes) are verified by hash when opened; larger ones by size only."""


class ShardFolder:
    """An opened and checked folder of shards.

    Attributes:
        folder: a path, or an address such as `s3://bucket/folder`.
        cache: the cache for an address; None for a path.
    """

    def __init__(self, folder: Path | str, cache_bytes: int = 2**34) -> None:
        """Read the manifest and the tokenizer, and check every file; for an address, check only these two.

        Args:
            cache_bytes: size of the local cache for an address.

        Raises:
            DataError: a file is missing, truncated, damaged, or does not belong to the manifest; names the file.
        """
        self.folder = folder
        self.cache: SegmentCache | None = None
        if isinstance(folder, str) and "://" in folder:
            self.manifest, self.tokenizer, self.cache = open_shards(folder, cache_bytes)
        else:
            self.folder = Path(folder)
            self.manifest = read_manifest(self.folder / "manifest.json")
            self.tokenizer = Tokenizer.from_file(self.folder / "tokenizer.json")
        if (self.tokenizer.fingerprint, self.tokenizer.n_vocab) != (self.manifest.tokenizer, self.manifest.n_vocab):
            raise DataError(f"{folder}/tokenizer.json is not the tokenizer that made these shards: prepare them again")
        if isinstance(self.folder, Path):
            _check(self.folder, self.manifest)

    @property
    def address(self) -> str:
        """The folder as an absolute path, or its address."""
        return str(self.folder.resolve()) if isinstance(self.folder, Path) else self.folder

    def tokens(self, shard: Shard) -> Tokens:
        """Return the tokens of a shard, memory-mapped or read through the cache."""
        return self.cache.tokens(shard) if self.cache else _map_tokens(Path(self.folder), shard)

    def shards(self, split: Split, corpus: str, stratum: Stratum | None = None) -> list[Shard]:
        """List the shards of a corpus in a split, or in one stratum of it; `first` comes before `rest`."""
        shards = [shard for shard in self.manifest.shards if (shard.split, shard.corpus) == (split, corpus)]
        return sorted((s for s in shards if stratum in (None, s.stratum)), key=lambda shard: shard.stratum)

    def corpora(self, split: Split) -> list[str]:
        """List the corpora with tokens in a split, in the manifest's order."""
        return list(dict.fromkeys(shard.corpus for shard in self.manifest.shards if shard.split == split))

    def stream(self, split: Split, corpus: str, stratum: Stratum = "first") -> TokenStream:
        """Join the tokens of one corpus in a split."""
        return TokenStream([self.tokens(shard) for shard in self.shards(split, corpus, stratum)])


def damaged(folder: Path, files: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the files that are missing or whose content doesn't match the given SHA-256."""
    return (name for name, sha256 in files if not (folder / name).is_file() or file_sha256(folder / name) != sha256)


def _check(folder: Path, manifest: Manifest) -> None:
    files = [file for shard in manifest.shards for file in shard.files.items()]
    again = {
        name: shard.again if shard.place and name == shard.tokens_file else AGAIN
        for shard in manifest.shards
        for name in shard.files
    }
    missing = [name for name, _ in files if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder / missing[0]} is missing, named by its manifest: {again[missing[0]]}")
    is_small = sum((folder / name).stat().st_size for name, _ in files) < VERIFY_BELOW_BYTES
    for name in damaged(folder, files) if is_small else ():
        raise DataError(f"{folder / name} is damaged (its SHA-256 is not the manifest's): {again[name]}")
    for shard in manifest.shards:
        arrays = check_arrays(folder, shard, manifest.n_vocab)
        if is_small:
            check_tokens(folder, shard, arrays, manifest.n_vocab)


def check_arrays(folder: Path, shard: Shard, n_vocab: int) -> np.ndarray:
    """Check dtype and length of a shard's arrays, and return its tokens; raise DataError with the file's name."""
    tokens, starts, hashes = (folder / name for name in shard.files)
    if shard.place is None:
        _check_array(tokens, token_dtype(n_vocab), shard.tokens, "tokens")
    _check_array(starts, np.dtype("<u8"), shard.documents, "documents")
    _check_array(hashes, np.dtype("<u8"), -(-tokens.stat().st_size // SEGMENT_BYTES), "hashes")
    return _map_tokens(folder, shard)


def check_tokens(folder: Path, shard: Shard, tokens: np.ndarray, n_vocab: int) -> None:
    """Read all tokens of a shard; raise DataError with the file's name if one is not in the vocabulary."""
    check_largest_token(str(folder / shard.tokens_file), int(tokens.max(initial=0)), n_vocab)


def _check_array(path: Path, dtype: np.dtype, length: int, what: str) -> None:
    array = _map(path)
    if array.ndim != 1 or array.dtype != dtype:
        raise DataError(f"{path} holds {array.dtype} of shape {array.shape}, not a row of {dtype}: {AGAIN}")
    if len(array) != length:
        cause = f"few {what}, it was truncated" if len(array) < length else f"many {what}"
        raise DataError(f"{path} holds too {cause}: {AGAIN}")


def _map_tokens(folder: Path, shard: Shard) -> np.ndarray:
    path, place = folder / shard.tokens_file, shard.place
    if place is None:
        return _map(path)
    try:
        size, ends = path.stat().st_size, place.offset + shard.tokens * np.dtype(place.dtype).itemsize
        if size != ends:
            raise DataError(f"{path} has {size:,} bytes where its manifest says {ends:,}: {shard.again}")
        return np.memmap(path, place.dtype, mode="r", offset=place.offset)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be mapped ({in_one_line(error)}): {shard.again}") from error


def _map(path: Path) -> np.ndarray:
    try:
        return load_array(path, is_mapped=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be mapped ({in_one_line(error)}): {AGAIN}") from error

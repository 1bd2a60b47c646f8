"""Folders of token shards, opened and checked: ordinary `.npy` files here, or at an address behind a cache."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gptstar.data.storage.manifest import AGAIN, Manifest, Shard, Split, Stratum, read_manifest
from gptstar.data.storage.remote import SegmentCache, open_shards
from gptstar.data.storage.stream import Tokens, TokenStream
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.files import file_sha256

VERIFY_BELOW_BYTES = 2**30
"""Folders smaller than this are verified by hash whenever they are opened; larger ones by size alone."""


class ShardFolder:
    """A folder of shards, opened and checked.

    Attributes:
        folder: where it is: a path, or an address such as `s3://bucket/folder`.
        cache: what an address is read through; None for a path.
    """

    def __init__(self, folder: Path | str, cache_bytes: int = 2**34) -> None:
        """Read the manifest and the tokenizer, and check every file, or of an address those two.

        Args:
            cache_bytes: room on this machine for what is read from an address.

        Raises:
            DataError: a file is missing, cut short, damaged, or does not belong to the manifest; names the file.
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
        """The folder as any working directory finds it."""
        return str(self.folder.resolve()) if isinstance(self.folder, Path) else self.folder

    def tokens(self, shard: Shard) -> Tokens:
        """Map the tokens of a shard, or read them through the cache."""
        return self.cache.tokens(shard) if self.cache else _map(Path(self.folder), shard)

    def shards(self, split: Split, corpus: str, stratum: Stratum | None = None) -> list[Shard]:
        """List the shards of a corpus in a split, or in a stratum of it; `first` before `rest`."""
        shards = [shard for shard in self.manifest.shards if (shard.split, shard.corpus) == (split, corpus)]
        return sorted((s for s in shards if stratum in (None, s.stratum)), key=lambda shard: shard.stratum)

    def corpora(self, split: Split) -> list[str]:
        """List the corpora with tokens in a split, in the manifest's order."""
        return list(dict.fromkeys(shard.corpus for shard in self.manifest.shards if shard.split == split))

    def stream(self, split: Split, corpus: str, stratum: Stratum = "first") -> TokenStream:
        """Join the tokens of one corpus in a split."""
        return TokenStream([self.tokens(shard) for shard in self.shards(split, corpus, stratum)])


def damaged(folder: Path, files: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield those of some files, given with their SHA-256, that are missing or have another content."""
    return (name for name, sha256 in files if not (folder / name).is_file() or file_sha256(folder / name) != sha256)


def _check(folder: Path, manifest: Manifest) -> None:
    files = [file for shard in manifest.shards for file in shard.files.items()]
    missing = [name for name, _ in files if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder / missing[0]} is missing, named by its manifest: {AGAIN}")
    if sum((folder / name).stat().st_size for name, _ in files) < VERIFY_BELOW_BYTES:
        for name in damaged(folder, files):
            raise DataError(f"{folder / name} is damaged (its SHA-256 is not the manifest's): {AGAIN}")
    for shard in manifest.shards:
        if len(_map(folder, shard)) != shard.tokens:
            raise DataError(f"{folder / shard.name}.npy holds too few tokens, it was cut short: {AGAIN}")


def _map(folder: Path, shard: Shard) -> np.ndarray:
    path = folder / f"{shard.name}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be mapped ({error}): {AGAIN}") from error

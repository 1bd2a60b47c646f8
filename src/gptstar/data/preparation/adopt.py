"""Use token files of other projects in place: write a manifest for llm.c's `.bin` files or flat `.npy` files."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from gptstar.data.config import NAME
from gptstar.data.storage.arrays import load_array
from gptstar.data.storage.manifest import (
    Manifest,
    Place,
    Shard,
    Source,
    Split,
    segment_hashes,
    write_manifest,
)
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError, in_one_line
from gptstar.files import file_sha256, partial_path, remove

HEADER_INTS, MAGIC, VERSION = 256, 20240520, 1
"""llm.c's header: little-endian int32 values; the first three are magic number, version and number of tokens."""
HEADER_SIZE = 4 * HEADER_INTS
CHUNK_TOKENS = 2**24
VALIDATES = re.compile(r"(^|[^a-z])val(idation)?([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Adoption:
    """A request to adopt files of tokens.

    Attributes:
        files: token files; those with `val` in their name, llm.c's convention, are held out for validation.
        validation: further files to hold out for validation.
        tokenizer: the `tokenizers` JSON that made the tokens.
        corpus: name of the corpus; by default the folder of the first file.
        licence: licence of the text.
    """

    files: tuple[Path, ...]
    validation: tuple[Path, ...]
    tokenizer: Path
    corpus: str | None = None
    licence: str = "not stated"

    def by_split(self) -> list[tuple[Path, Split]]:
        """List each file once with its split, training files first.

        Raises:
            DataError: a split has no file.
        """
        of_validation = {*self.validation, *(path for path in self.files if VALIDATES.search(path.stem))}
        files = list(dict.fromkeys([*self.files, *self.validation]))
        train = [path for path in files if path not in of_validation]
        if not train:
            raise DataError(f"all files are held out for validation, such as {files[0]}: give a file to train on")
        if not of_validation:
            raise DataError("no file is held out for validation: name one by --validation FILE")
        return [(path, "train") for path in train] + [(path, "validation") for path in files if path in of_validation]


def adopt(adoption: Adoption, output: Path, track: Callable[["Sequence[_Placed]"], "Iterable[_Placed]"]) -> Manifest:
    """Read token files once, and write a folder of shards that refers to them; the tokens are not copied.

    Args:
        output: the folder to write; it appears complete or not at all.
        track: wraps the iteration over the files, for a progress bar.

    Raises:
        DataError: a file has another format, or tokens of another tokenizer; `output` exists or can't be written.
    """
    if output.exists():
        raise DataError(f"--output {output} exists and is not overwritten: choose another folder or remove it")
    files, tokenizer = adoption.by_split(), Tokenizer.from_file(adoption.tokenizer)
    corpus = (
        adoption.corpus or re.sub(r"[^A-Za-z0-9_.-]+", "-", files[0][0].resolve().parent.name).strip("-.") or "tokens"
    )
    if not NAME.fullmatch(corpus):
        raise DataError(
            f"--corpus {in_one_line(corpus)}: the name of a corpus may hold letters, digits, _, - and . only"
        )
    placed = [_Placed(path, split, place_of(path)) for path, split in files]
    end_of_text_first = int(placed[0].tokens[0]) == tokenizer.end_of_text
    partial = partial_path(output)
    try:
        remove(partial)
        partial.mkdir(parents=True)
        shards: list[Shard] = []
        for each in track(placed):
            name = f"{each.split}-{corpus}-{sum(shard.split == each.split for shard in shards):05d}"
            shard = _shard(partial / name, corpus, each, tokenizer, end_of_text_first=end_of_text_first)
            shards.append(replace(shard, place=_portable_place(output, each)))
        identity = sha256("\n".join([tokenizer.fingerprint, *(shard.sha256 for shard in shards)]).encode()).hexdigest()
        where = ", ".join(dict.fromkeys(str(path.resolve().parent) for path, _ in files))
        read = {"read": sum(shard.documents for shard in shards)}
        manifest = Manifest(
            identity,
            identity,
            tokenizer.fingerprint,
            tokenizer.n_vocab,
            {corpus: Source(where, adoption.licence, counts=read)},
            tuple(shards),
            {
                "tokens": "of another project, where they were",
                "end of text": "before" if end_of_text_first else "between",
            },
        )
        write_manifest(partial, manifest, tokenizer)
        partial.rename(output)
    except OSError as error:
        raise DataError(f"can't adopt {files[0][0]} into {output} ({error.strerror or error})") from error
    finally:
        remove(partial)
    return manifest


def place_of(path: Path) -> Place:
    """Return where the tokens of a file begin, and their dtype.

    Raises:
        DataError: the file is neither a flat `.npy` nor a `.bin` with llm.c's header, or is truncated; names it.
    """
    try:
        if path.suffix == ".npy":
            return _place_in_npy(path)
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", HEADER_INTS)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} can't be read as tokens ({in_one_line(error)}): give llm.c's .bin or a flat .npy"
        ) from error
    magic, version, n_tokens = (int(each) for each in header[:3]) if size >= HEADER_SIZE else (0, 0, 0)
    if magic != MAGIC:
        raise DataError(
            f"{path} does not begin with llm.c's header (its first number is {magic}, not {MAGIC}): give a .bin that "
            "llm.c's scripts wrote, or save the tokens as .npy"
        )
    if version != VERSION:
        raise DataError(
            f"{path} has version {version} of llm.c's header, but only version {VERSION} (uint16 tokens) is "
            "supported: convert it"
        )
    if size - HEADER_SIZE != 2 * n_tokens or n_tokens < 1:
        raise DataError(
            f"{path} has {size - HEADER_SIZE:,} bytes after its header, which states {n_tokens:,} tokens of 2 bytes: "
            "it was truncated or extended; copy it again"
        )
    return Place(str(path), HEADER_SIZE, "<u2")


def _place_in_npy(path: Path) -> Place:
    array = load_array(path, is_mapped=True)
    kinds: dict[np.dtype, Literal["<u2", "<u4"]] = {np.dtype("<u2"): "<u2", np.dtype("<u4"): "<u4"}
    if array.ndim != 1 or array.dtype not in kinds or not len(array):
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}, not one row of uint16 or uint32: save it as one"
        )
    assert isinstance(array, np.memmap)
    return Place(str(path), array.offset, kinds[array.dtype])


def _portable_place(output: Path, placed: "_Placed") -> Place:
    """Make the path relative if file and output share a parent folder, which may then move as a whole."""
    there, around = placed.path.resolve(), output.resolve().parent
    is_beside = there.is_relative_to(around)
    return replace(placed.place, file=os.path.relpath(there, output.resolve()) if is_beside else str(there))


@dataclass(frozen=True)
class _Placed:
    path: Path
    split: Split
    place: Place

    @property
    def tokens(self) -> np.ndarray:
        return np.memmap(self.path, self.place.dtype, mode="r", offset=self.place.offset)


def _shard(name: Path, corpus: str, placed: _Placed, tokenizer: Tokenizer, *, end_of_text_first: bool) -> Shard:
    """Read a whole file, and write where its documents begin and the hashes of its segments.

    The rest of a document that began in the previous file counts as a document of its own.

    Args:
        name: path of the shard, without suffixes.
        end_of_text_first: each document begins with an end-of-text token, instead of ending with one.

    Raises:
        DataError: a token is not in the vocabulary; names the file.
    """
    path, tokens, n_vocab = placed.path, placed.tokens, tokenizer.n_vocab
    counts, starts = np.zeros(n_vocab, np.int64), [np.zeros(1, np.int64)]
    for first in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[first : first + CHUNK_TOKENS]
        if (largest := int(chunk.max())) >= n_vocab:
            raise DataError(
                f"{path} holds the token {largest}, but the tokenizer has {n_vocab:,} tokens: give the tokenizer that "
                "made the file"
            )
        counts += np.bincount(chunk, minlength=n_vocab)
        starts.append(np.flatnonzero(chunk == tokenizer.end_of_text) + first + (not end_of_text_first))
    joined = np.concatenate(starts)
    of_documents = np.unique(joined[joined < len(tokens)]).astype("<u8")
    files = [name.with_name(f"{name.name}{suffix}") for suffix in (".documents.npy", ".segments.npy")]
    np.save(files[0], of_documents)
    np.save(files[1], segment_hashes(path))
    sizes = len(tokens), len(of_documents), int(counts @ tokenizer.token_bytes)
    hashes = file_sha256(path), file_sha256(files[0]), file_sha256(files[1])
    largest = int(np.flatnonzero(counts).max())
    return Shard(name.name, corpus, placed.split, "first", *sizes, *hashes, largest, placed.place)

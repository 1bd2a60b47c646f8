"""The tokens of other projects, read where they lie: a manifest of llm.c's `.bin` files and of flat `.npy` files."""

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
"""llm.c's header: little-endian int32, of which the first three are the magic number, the version and the tokens."""
HEADER_SIZE = 4 * HEADER_INTS
CHUNK_TOKENS = 2**24
VALIDATES = re.compile(r"(^|[^a-z])val(idation)?([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Adoption:
    """A request to adopt files of tokens.

    Attributes:
        files: those with `val` in their name are validated on, as llm.c names them, and the others trained on.
        validation: more files to validate on.
        tokenizer: the `tokenizers` JSON that the tokens are of.
        corpus: the name of the text; the folder of the first file unless given.
        licence: of the text.
    """

    files: tuple[Path, ...]
    validation: tuple[Path, ...]
    tokenizer: Path
    corpus: str | None = None
    licence: str = "not stated"

    def by_split(self) -> list[tuple[Path, Split]]:
        """Each file once, those that are trained on first.

        Raises:
            DataError: a split has none.
        """
        of_validation = {*self.validation, *(path for path in self.files if VALIDATES.search(path.stem))}
        files = list(dict.fromkeys([*self.files, *self.validation]))
        train = [path for path in files if path not in of_validation]
        if not train:
            raise DataError(f"{files[0]} is to be validated on, and no file is left to train on: give one")
        if not of_validation:
            raise DataError(
                f"{files[0]} is to be trained on, and no file is left to validate on: give one by --validation FILE"
            )
        return [(path, "train") for path in train] + [(path, "validation") for path in files if path in of_validation]


def adopt(asked: Adoption, output: Path, shown: Callable[["Sequence[_Placed]"], "Iterable[_Placed]"]) -> Manifest:
    """Read files of tokens once, and write a folder of shards that says where they are; they are not copied.

    Args:
        output: appears complete or not at all.
        shown: hands the files on as they are read, for a progress bar.

    Raises:
        DataError: a file is of another form, or holds tokens of another tokenizer; `output` exists; or it can't be
            written.
    """
    if output.exists():
        raise DataError(f"--output {output} exists: nothing is overwritten; choose another folder or remove it")
    files, tokenizer = asked.by_split(), Tokenizer.from_file(asked.tokenizer)
    corpus = asked.corpus or re.sub(r"[^A-Za-z0-9_.-]+", "-", files[0][0].resolve().parent.name).strip("-.") or "tokens"
    if not NAME.fullmatch(corpus):
        raise DataError(f"--corpus {in_one_line(corpus)}: a corpus is named by letters, digits, _, - and .")
    placed = [_Placed(path, split, place_of(path)) for path, split in files]
    opened = int(placed[0].tokens[0]) == tokenizer.end_of_text
    partial = partial_path(output)
    try:
        remove(partial)
        partial.mkdir(parents=True)
        shards: list[Shard] = []
        for each in shown(placed):
            name = f"{each.split}-{corpus}-{sum(shard.split == each.split for shard in shards):05d}"
            shard = _shard(partial / name, corpus, each, tokenizer, opened=opened)
            shards.append(replace(shard, place=_seen_from(output, each)))
        identity = sha256("\n".join([tokenizer.fingerprint, *(shard.sha256 for shard in shards)]).encode()).hexdigest()
        where = ", ".join(dict.fromkeys(str(path.resolve().parent) for path, _ in files))
        read = {"read": sum(shard.documents for shard in shards)}
        manifest = Manifest(
            identity,
            identity,
            tokenizer.fingerprint,
            tokenizer.n_vocab,
            {corpus: Source(where, asked.licence, counts=read)},
            tuple(shards),
            {"tokens": "of another project, where they were", "end of text": "before" if opened else "between"},
        )
        write_manifest(partial, manifest, tokenizer)
        partial.rename(output)
    except OSError as error:
        raise DataError(f"can't adopt {files[0][0]} into {output} ({error.strerror or error})") from error
    finally:
        remove(partial)
    return manifest


def place_of(path: Path) -> Place:
    """Find where the tokens of a file begin, and their type.

    Raises:
        DataError: it is neither a flat `.npy` nor a `.bin` with llm.c's header, or was cut short; names it.
    """
    try:
        if path.suffix == ".npy":
            return _place_in_npy(path)
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", HEADER_INTS)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as tokens ({in_one_line(error)})") from error
    magic, version, n_tokens = (int(each) for each in header[:3]) if size >= HEADER_SIZE else (0, 0, 0)
    if magic != MAGIC:
        raise DataError(
            f"{path} does not begin with llm.c's header (its first number is {magic}, not {MAGIC}): give a .bin that "
            "llm.c's scripts wrote, or save the tokens as .npy"
        )
    if version != VERSION:
        raise DataError(f"{path} has version {version} of llm.c's header, and {VERSION} is what is read: uint16 tokens")
    if size - HEADER_SIZE != 2 * n_tokens or n_tokens < 1:
        raise DataError(
            f"{path} has {size - HEADER_SIZE:,} bytes after its header, which says {n_tokens:,} tokens of 2 bytes: it "
            "was cut short or written on; copy it again"
        )
    return Place(str(path), HEADER_SIZE, "<u2")


def _place_in_npy(path: Path) -> Place:
    array = load_array(path, is_mapped=True)
    kinds: dict[np.dtype, Literal["<u2", "<u4"]] = {np.dtype("<u2"): "<u2", np.dtype("<u4"): "<u4"}
    if array.ndim != 1 or array.dtype not in kinds or not len(array):
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}, not a row of uint16 or uint32: save it as one"
        )
    assert isinstance(array, np.memmap)
    return Place(str(path), array.offset, kinds[array.dtype])


def _seen_from(output: Path, placed: "_Placed") -> Place:
    """The place as the manifest names it: from its folder where both lie in one, which may move as a whole."""
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


def _shard(name: Path, corpus: str, placed: _Placed, tokenizer: Tokenizer, *, opened: bool) -> Shard:
    """Read a file through, and write where its documents begin and the hashes of its parts.

    A document that the file before began goes on as a document of its own.

    Args:
        name: of the shard, in its folder.
        opened: a document begins with an end-of-text of its own, and does not end with one.

    Raises:
        DataError: a token is beyond the vocabulary; names the file.
    """
    path, tokens, n_vocab = placed.path, placed.tokens, tokenizer.n_vocab
    counts, starts = np.zeros(n_vocab, np.int64), [np.zeros(1, np.int64)]
    for first in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[first : first + CHUNK_TOKENS]
        if (largest := int(chunk.max())) >= n_vocab:
            raise DataError(
                f"{path} holds the token {largest}, beyond the {n_vocab:,} tokens of the tokenizer: give the one that "
                "its tokens are of"
            )
        counts += np.bincount(chunk, minlength=n_vocab)
        starts.append(np.flatnonzero(chunk == tokenizer.end_of_text) + first + (not opened))
    joined = np.concatenate(starts)
    of_documents = np.unique(joined[joined < len(tokens)]).astype("<u8")
    files = [name.with_name(f"{name.name}{suffix}") for suffix in (".documents.npy", ".segments.npy")]
    np.save(files[0], of_documents)
    np.save(files[1], segment_hashes(path))
    sizes = len(tokens), len(of_documents), int(counts @ tokenizer.token_bytes)
    hashes = file_sha256(path), file_sha256(files[0]), file_sha256(files[1])
    largest = int(np.flatnonzero(counts).max())
    return Shard(name.name, corpus, placed.split, "first", *sizes, *hashes, largest, placed.place)

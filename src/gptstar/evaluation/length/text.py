"""The text of a study as tokens, from text files or from the shards that a checkpoint was trained with."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gptstar.data.storage.documents import document_tokens
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.storage.stream import TokenStream
from gptstar.data.text.pieces import pieces
from gptstar.data.text.readers import File, form_of
from gptstar.data.text.records import Fields, Piece, Skipped
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError, in_one_line
from gptstar.evaluation.length.config import LengthConfig
from gptstar.files import file_sha256

COLUMNS = ("text", "page")
"""The text's column by default: The Pile's, and that of the harness's WikiText."""

AT_ONCE = 256
"""The number of documents that are tokenised together."""

CONTINUATIONS = bytes(range(0b1000_0000, 0b1100_0000))
"""The bytes with which no UTF-8 character begins."""


@dataclass(frozen=True, eq=False)
class Text:
    """A tokenised text.

    Attributes:
        name: the name in titles.
        source: the description in results: `files` with their hashes, or `shards` with their fingerprint.
        documents: the tokens of each document. The first token is read and never scored: it is the end-of-text before a
            document, or the first token of a stream.
        token_bytes: `(n_vocab,)`, int64: bytes of text that each token stands for.
        exact_bytes: whether the tokens' bytes add up to those of the text; not so if the tokenizer alters text.
    """

    name: str
    source: dict[str, Any]
    documents: tuple[TokenStream, ...]
    token_bytes: np.ndarray
    exact_bytes: bool = True

    @property
    def sizes(self) -> np.ndarray:
        """The number of targets in each document: `(document,)`, int64."""
        return np.asarray([len(document) - 1 for document in self.documents], dtype=np.int64)


def find(config: LengthConfig) -> list[str]:
    """Return the files that the study's globs match, and its addresses unchanged.

    Raises:
        DataError: a glob matches nothing.
    """
    files: list[str] = []
    for pattern in config.paths:
        is_one = "://" in pattern or os.path.isfile(pattern)
        matches = [pattern] if is_one else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
        if not matches:
            raise DataError(
                f"{config.KEY}.text: {pattern} matches no file (looked from {Path.cwd()}): correct the path"
            )
        files += matches
    return list(dict.fromkeys(files))


def texts_of(address: str, config: LengthConfig, last_bytes: int | None = None) -> Iterator[str]:
    """Yield the documents of a file, empty ones too. JSON lines, Parquet and Arrow hold several.

    Args:
        address: the file.
        config: its `column` names the text's field; by default the first of `COLUMNS` that the first record has.
        last_bytes: the number of bytes to read at the end of plain text; None for all.

    Raises:
        DataError: the file can't be read or is not text, or a record has no such column; the message names the place.
    """
    if form_of(address) in (None, "txt"):
        yield plain_text(address, last_bytes)
        return
    if last_bytes is not None:
        raise DataError(f"{config.KEY}.last_bytes is for plain text; {address} is not: leave it out")
    columns = COLUMNS if config.column is None else (config.column,)
    for name in columns:
        first = next(File(address, None, Fields(name)).read(), None)
        if not isinstance(first, Skipped) or "field" not in first.reason:
            break
    else:
        assert isinstance(first, Skipped)
        names = " or ".join(f'"{each}"' for each in columns)
        raise DataError(f"{first.place}: no {names} field: name the text's as {config.KEY}.column")
    parts: list[str] = []
    for record in File(address, None, Fields(name)).read():
        if isinstance(record, Piece):
            parts.append(record.text)
        elif record.reason != "empty":
            raise DataError(f"{record.place}: {record.reason}")
        if record.last:
            yield "".join(parts)
            parts = []


def plain_text(address: str, last_bytes: int | None = None) -> str:
    """Read a UTF-8 file as a whole, or its end, starting at a whole character.

    Raises:
        DataError: it can't be read, is not UTF-8, or is empty.
    """
    try:
        content, _ = File(address, None, Fields()).open()
        with content:
            data = content.read()
    except Exception as error:  # each kind of store and of compression has its own
        raise DataError(f"{address}: can't be read ({in_one_line(error)})") from error
    if last_bytes is not None and last_bytes < len(data):
        data = data[-last_bytes:].lstrip(CONTINUATIONS)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        archive = " (read a member of an archive as zip://NAME::FILE)" if address.endswith(".zip") else ""
        raise DataError(f"{address} is not UTF-8 text, nor named as JSON lines or Parquet{archive}") from error
    if not text:
        raise DataError(f"{address} is empty: give another file")
    return text


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Tokenise each text, int32; long texts are cut into pieces if the tokens stay the same."""
    cut = [list(pieces(text)) if tokenizer.can_be_cut else [text] for text in texts]
    tokens = iter(tokenizer.encode([piece for each in cut for piece in each]))
    return [np.concatenate([next(tokens) for _ in each]).astype(np.int32) for each in cut]


def text_of_files(tokenizer: Tokenizer, config: LengthConfig) -> Text:
    """Tokenise the files of a study, with an end-of-text before each document.

    With `documents=joined` all of them are one stream, in which the end-of-text between two documents is scored too.

    Raises:
        DataError: a file is missing, can't be read or is not text; or there is no text at all.
    """
    files = find(config)
    texts = (text for address in files for text in texts_of(address, config, config.last_bytes) if text)
    start = np.asarray([tokenizer.end_of_text], dtype=np.int32)
    documents: list[np.ndarray] = []
    n_bytes = 0
    while batch := list(islice(texts, AT_ONCE)):
        documents += [np.concatenate((start, tokens)) for tokens in encode(tokenizer, batch)]
        n_bytes += sum(len(text.encode()) for text in batch)
    if not documents:
        raise DataError(f"{config.KEY}.text: {', '.join(files)}: nothing but empty documents; give other files")
    n_token_bytes = sum(int(tokenizer.token_bytes[document].sum()) for document in documents)
    if config.documents == "joined":
        documents = [np.concatenate(documents)]
    return Text(
        name=", ".join(dict.fromkeys(_short(address) for address in config.paths)),
        source=source_of_files(files),
        documents=tuple(TokenStream([document]) for document in documents),
        token_bytes=tokenizer.token_bytes,
        exact_bytes=n_token_bytes == n_bytes,
    )


def source_of_files(files: Sequence[str]) -> dict[str, Any]:
    """Return the names and SHA-256 of files; addresses have no hash."""
    return {"files": {each: None if "://" in each else file_sha256(Path(each)) for each in files}}


def _short(pattern: str) -> str:
    """Shorten a path to its last folder and name."""
    return "/".join(pattern.partition("::")[0].rpartition("://")[2].split("/")[-2:])


def text_of_shards(folder: ShardFolder, *, joined: bool = True) -> Text:
    """Return the held-out text of shards: each corpus as one stream, as in training, or each document separately."""
    corpora = folder.corpora("validation")
    if joined:
        documents = [folder.stream("validation", corpus) for corpus in corpora]
    else:
        documents = [document for corpus in corpora for document in _documents(folder, corpus)]
    return Text(
        name="held-out text",
        source={"shards": folder.address, "fingerprint": folder.manifest.fingerprint},
        documents=tuple(document for document in documents if len(document) > 1),
        token_bytes=folder.tokenizer.token_bytes,
    )


def _documents(folder: ShardFolder, corpus: str) -> Iterator[TokenStream]:
    end_of_text = folder.tokenizer.end_of_text
    for tokens in document_tokens(folder, "validation", corpus):
        text = tokens[tokens != end_of_text]
        yield TokenStream([np.concatenate(([end_of_text], text)).astype(np.int32)])

"""The text of a study as tokens: files as they lie, or the shards that a checkpoint was trained with."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from gptstar.files import file_sha256

COLUMNS = ("text", "page")
"""Of the text, unless named: The Pile's, and the harness's of WikiText."""
AT_ONCE = 256
"""Documents that are tokenised together."""


@dataclass(frozen=True, eq=False)
class Text:
    """What is read.

    Attributes:
        name: for titles.
        source: for results: `files` with their hashes, or `shards` with their fingerprint.
        documents: tokens of each. The first of them is read and never scored: it is the end-of-text before a document,
            or the first token of a stream.
        token_bytes: `(n_vocab,)`, int64: bytes of text that each token stands for.
        exact_bytes: whether the tokens' bytes add up to those of the text; a tokenizer that mends text breaks that.
    """

    name: str
    source: dict[str, Any]
    documents: tuple[TokenStream, ...]
    token_bytes: np.ndarray
    exact_bytes: bool = True

    @property
    def sizes(self) -> np.ndarray:
        """`(document,)`, int64: tokens of each that can be scored."""
        return np.asarray([len(document) - 1 for document in self.documents], dtype=np.int64)


def find(patterns: Sequence[str]) -> list[str]:
    """The files that globs match, and addresses as they are.

    Raises:
        DataError: a glob matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if "://" in pattern or os.path.isfile(pattern):
            matches = [pattern]
        else:
            matches = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
        if not matches:
            raise DataError(f"evaluation.text: {pattern} matches no file (looked from {Path.cwd()})")
        found |= dict.fromkeys(matches)
    return list(found)


def texts_of(address: str, column: str | None = None, last_bytes: int | None = None) -> Iterator[str]:
    """The documents of a file: JSON lines, Parquet, and anything else as one document of UTF-8. Empty ones too.

    Args:
        column: of the text; found unless given.
        last_bytes: of plain text, read only its end.

    Raises:
        DataError: it can't be read, is no text, or a record has no such column; names file, line and column.
    """
    if form_of(address) in ("jsonl", "parquet"):
        if last_bytes is not None:
            raise DataError(f"evaluation.last_bytes is for plain text; {address} is not: leave it out")
        yield from _records(address, column)
    else:
        yield plain_text(address, last_bytes)


def plain_text(address: str, last_bytes: int | None = None) -> str:
    """The whole of a file of UTF-8, or its end.

    Raises:
        DataError: it can't be read or is no UTF-8.
    """
    try:
        content, _ = File(address, None, Fields()).open()
        with content:
            data = content.read()
    except Exception as error:  # each kind of store and of compression has its own
        raise DataError(f"{address}: can't be read ({in_one_line(error)})") from error
    if last_bytes is not None and last_bytes < len(data):
        data = data[-last_bytes:]
        while data and data[0] & 0b1100_0000 == 0b1000_0000:  # the rest of a character that begins before
            data = data[1:]
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        archive = " (read a member of an archive as zip://NAME::FILE)" if address.endswith(".zip") else ""
        raise DataError(f"{address} is no UTF-8 text, nor named as JSON lines or Parquet{archive}") from error
    if not text:
        raise DataError(f"{address} is empty")
    return text


def _records(address: str, column: str | None) -> Iterator[str]:
    size = None if "://" in address else os.path.getsize(address)
    columns = COLUMNS if column is None else (column,)
    for name in columns:
        first = next(File(address, size, Fields(name)).read(), None)
        if not isinstance(first, Skipped) or "field" not in first.reason:
            break
    else:
        assert isinstance(first, Skipped)
        wanted = " or ".join(f'"{each}"' for each in columns)
        raise DataError(f"{first.place}: no {wanted} field: name the text's as evaluation.column")
    parts: list[str] = []
    for record in File(address, size, Fields(name)).read():
        if isinstance(record, Piece):
            parts.append(record.text)
            if record.last:
                yield "".join(parts)
                parts = []
        elif record.reason == "empty":
            yield ""
        else:
            raise DataError(f"{record.place}: {record.reason}")


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Tokens of each text, int32; long ones in pieces where that changes nothing."""
    if not tokenizer.can_be_cut:
        return [tokens.astype(np.int32) for tokens in tokenizer.encode(texts)]
    cut = [list(pieces(text)) for text in texts]
    tokens = iter(tokenizer.encode([piece for each in cut for piece in each]))
    return [np.concatenate([next(tokens) for _ in each]).astype(np.int32) for each in cut]


def text_of_files(
    patterns: Sequence[str],
    tokenizer: Tokenizer,
    *,
    column: str | None = None,
    last_bytes: int | None = None,
    joined: bool = False,
) -> Text:
    """Files, tokenised, with an end-of-text before each document.

    Args:
        joined: all of them as one stream, in which the end-of-text between two documents is scored too.

    Raises:
        DataError: as `find` and `texts_of`; or there is no text at all.
    """
    files = find(patterns)
    start = np.asarray([tokenizer.end_of_text], dtype=np.int32)
    documents: list[np.ndarray] = []
    n_bytes = 0

    def flush(waiting: list[str]) -> int:
        documents.extend(np.concatenate((start, tokens)) for tokens in encode(tokenizer, waiting))
        return sum(len(text.encode()) for text in waiting)

    waiting: list[str] = []
    for address in files:
        for text in texts_of(address, column, last_bytes):
            if text:
                waiting.append(text)
            if len(waiting) == AT_ONCE:
                n_bytes += flush(waiting)
                waiting = []
    n_bytes += flush(waiting)
    if not documents:
        raise DataError(f"evaluation.text: {', '.join(files)}: nothing but empty documents")
    counted = sum(int(tokenizer.token_bytes[document].sum()) for document in documents)
    if joined:
        documents = [np.concatenate(documents)]
    return Text(
        name=", ".join(dict.fromkeys(_short(address) for address in patterns)),
        source=source_of_files(files),
        documents=tuple(TokenStream([document]) for document in documents),
        token_bytes=tokenizer.token_bytes,
        exact_bytes=counted == n_bytes,
    )


def source_of_files(files: Sequence[str]) -> dict[str, Any]:
    """Names and SHA-256 of files; of an address its name alone."""
    return {"files": {each: None if "://" in each else file_sha256(Path(each)) for each in files}}


def _short(pattern: str) -> str:
    """The last folder and the name, or of an archive's member its name."""
    return "/".join(pattern.partition("::")[0].rpartition("://")[2].split("/")[-2:])


def text_of_shards(folder: ShardFolder, *, joined: bool = True) -> Text:
    """The held-out text of a folder of shards.

    Args:
        joined: each corpus as one stream, as in training; else each document by itself.
    """
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

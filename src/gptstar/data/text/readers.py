"""Read documents from local or remote files: JSON lines, Parquet, Arrow and plain text, also compressed."""

import hashlib
import json
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, BinaryIO

import fsspec
import zstandard

from gptstar.data.text.compression import COMPRESSIONS, decompressed
from gptstar.data.text.pieces import decoded_pieces
from gptstar.data.text.records import Fields, Piece, Record, Skipped, Unit, in_pieces, row
from gptstar.errors import DataError, in_one_line

LINE_BYTES = 2**28
"""A longer line means that the file has another format, so it is skipped."""
RETRY_SECONDS = (1, 2, 4, 8, 16)
"""Seconds to wait before a remote file is read again, from the record where the connection was lost."""
FORMS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
}


def form_of(address: str) -> str | None:
    """Return the format of a file by its name: `jsonl`, `txt`, `parquet` or `arrow`; None for other files."""
    name = address.partition("::")[0].lower()
    plain = name.removesuffix(next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), ""))
    form = next((form for ending, form in FORMS.items() if plain.endswith(ending)), None)
    # Tables are compressed inside, and are read in random order.
    return None if form in ("parquet", "arrow") and plain != name else form


@dataclass(frozen=True)
class File(Unit):
    """A file of documents, named by a local path or an address that fsspec knows."""

    fields: Fields

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the records, without the first `start`.

        Raises:
            DataError: the file is damaged, truncated, or can't be reached; the message names it.
        """
        forms = {"jsonl": _read_lines, "txt": _read_text, "parquet": _read_parquet, "arrow": _read_arrow}
        read = forms[form_of(self.name) or ""]
        waits: tuple[float | None, ...] = (None,)
        errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, zstandard.ZstdError)
        if "://" in self.name:
            waits, errors = (*RETRY_SECONDS, None), (Exception,)  # each kind of store raises its own
        for wait in waits:
            between = True  # documents
            try:
                for record in read(self, start):
                    yield record
                    between = record.last
                    start = record.record if between else start
                return
            except errors as error:
                if isinstance(error, DataError):
                    raise
                if wait is None or not between or isinstance(error, FileNotFoundError | PermissionError):
                    raise DataError(
                        f"{self.name} can't be read ({error}): it is damaged, truncated or gone; replace it"
                    ) from error
                time.sleep(wait)

    def open(self) -> tuple[BinaryIO, Callable[[], int]]:
        """Open the decompressed content, and return a function that counts the bytes read from the file."""
        filesystem, path = fsspec.core.url_to_fs(self.name)
        raw = filesystem.open(path, "rb")
        content = decompressed(raw, self.name.partition("::")[0])
        return (
            content,
            lambda: raw.tell() if filesystem else 0,
        )  # keep a reference: an archive's filesystem closes when it is collected


def _read_lines(file: File, start: int) -> Iterator[Record]:
    content, position = file.open()
    with content:
        for number, line in enumerate(iter(lambda: content.readline(LINE_BYTES), b""), start=1):
            is_too_long = len(line) == LINE_BYTES and not line.endswith(b"\n")
            if is_too_long:
                while (more := content.readline(LINE_BYTES)) and not more.endswith(b"\n"):
                    pass
            if number <= start or (line.isspace() and not is_too_long):
                continue
            place, offset = f"{file.name}, line {number}", position()
            try:
                if is_too_long:
                    raise ValueError(f"a line longer than {LINE_BYTES >> 20} MiB")
                parsed = _parsed(line)
            except ValueError as error:
                yield Skipped(str(error), place, number, offset)
            else:
                yield from row(parsed, file.fields, place, number, offset)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error


def _read_text(file: File, start: int) -> Iterator[Record]:
    """Yield a whole file as one document. It is read twice, because its hash decides where its first piece goes."""
    if start:
        return
    digest = hashlib.sha256()
    content, _ = file.open()
    try:
        with content:
            is_empty = True
            for text in decoded_pieces(content):
                digest.update(text.encode())
                is_empty = is_empty and (not text or text.isspace())
        if is_empty:
            yield Skipped("empty", file.name, 1)
            return
        content, position = file.open()
        with content:
            whole = Piece("", digest.digest()[:16], record=1)
            for piece in in_pieces(whole, decoded_pieces(content)):
                yield replace(piece, offset=position())
    except UnicodeDecodeError:
        yield Skipped("not UTF-8", file.name, 1)


def _read_parquet(file: File, start: int) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    content, _ = file.open()
    try:
        with content, pyarrow.parquet.ParquetFile(content) as table:
            metadata = table.metadata
            ends = list(accumulate(metadata.row_group(group).num_rows for group in range(table.num_row_groups)))
            first_group = bisect_right(ends, start)
            number = [0, *ends][first_group]
            columns = [name for name in table.schema_arrow.names if file.fields.may_be_in(name)]
            for batch in table.iter_batches(64, row_groups=range(first_group, len(ends)), columns=columns):
                offset = (file.size or 0) * (number + len(batch)) // metadata.num_rows
                yield from _rows(file, batch, number, start, offset)
                number += len(batch)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.name} is damaged or not a Parquet file ({in_one_line(error)}): replace it") from error


def _read_arrow(file: File, start: int) -> Iterator[Record]:
    """Read Arrow's stream format, which `datasets` saves, or its file format."""
    import pyarrow
    import pyarrow.ipc

    content, _ = file.open()
    number = 0
    try:
        with content:
            try:
                batches: Any = pyarrow.ipc.open_stream(content)
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(content)
                batches = map(table.get_batch, range(table.num_record_batches))
            for batch in batches:
                names = [name for name in batch.schema.names if file.fields.may_be_in(name)]
                yield from _rows(file, batch.select(names), number, start, content.tell())
                number += len(batch)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file.name} is damaged or not an Arrow file ({in_one_line(error)}): replace it") from error


def _rows(file: File, batch: Any, before: int, start: int, offset: int) -> Iterator[Record]:
    """Yield the rows of a batch, without the first `start` rows of the file; `before` rows precede the batch."""
    for index in range(max(0, start - before), len(batch)):
        number = before + index + 1
        place = f"{file.name}, row {number}"
        try:
            (values,) = batch.slice(index, 1).to_pylist()
        except (ValueError, OverflowError):
            yield Skipped("can't be decoded", place, number, offset)
        else:
            yield from row(values, file.fields, place, number, offset)

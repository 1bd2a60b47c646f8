"""Read compressed files, and detect truncated ones."""

import gzip
import io
from typing import Any, BinaryIO, cast

import zstandard

COMPRESSIONS = (".zst", ".gz")
CHUNK_BYTES = 2**14


class ZstdFile(io.RawIOBase):
    """The decompressed content of a zstd file. Unlike the library's own reader, it detects a truncated file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._decompressor.decompressobj()
        self._between_frames = False  # an empty file is truncated, too
        self._left = memoryview(b"")  # decompressed, but not read yet

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read up to a buffer's size.

        Raises:
            EOFError: the file is truncated: it ends within a frame.
            zstandard.ZstdError: the file is damaged, or not zstd.
        """
        while not self._left:
            chunk = b""
            if self._frame.eof:
                chunk, self._between_frames = self._frame.unused_data, True
                self._frame = self._decompressor.decompressobj()
            chunk = chunk or self._file.read(CHUNK_BYTES)
            if not chunk:
                if self._between_frames:
                    return 0
                raise EOFError("it ends within a frame")
            self._left = memoryview(self._frame.decompress(chunk))
            self._between_frames = self._frame.eof
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def close(self) -> None:
        """Close this object and the file."""
        self._file.close()
        super().close()


def decompressed(file: BinaryIO, name: str) -> BinaryIO:
    """Open the decompressed content of a file, by its suffix. Closing the content closes the file."""
    content: Any = file
    name = name.lower()
    if name.endswith(".zst"):
        content = ZstdFile(file)
    elif name.endswith(".gz"):
        if not file.read(1):
            raise EOFError("it is empty, which no compressed file is")
        file.seek(0)
        content = gzip.GzipFile(fileobj=file)
        content.myfileobj = file  # the content closes it
    return cast(BinaryIO, io.BufferedReader(content, 2**20))  # files of some stores can't be read by lines

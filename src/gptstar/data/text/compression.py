"""Reading compressed files, and noticing when they were cut short."""

import gzip
import io
from typing import Any, BinaryIO, cast

import zstandard

COMPRESSIONS = (".zst", ".gz")
CHUNK_BYTES = 2**14


class ZstdFile(io.RawIOBase):
    """The content of a file of zstd frames. The library's own reader does not notice a file that was cut short."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._decompressor.decompressobj()
        self._between_frames = False  # not even an empty file is a whole one
        self._left = memoryview(b"")  # decompressed and not read yet

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as is easy.

        Raises:
            EOFError: the file ends within a frame.
            zstandard.ZstdError: it is damaged, or not zstd.
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
        """Close the file too."""
        self._file.close()
        super().close()


def decompressed(file: BinaryIO, name: str) -> BinaryIO:
    """Decompress a file, by the ending of its name; closing the content closes the file."""
    content: Any = file
    name = name.lower()
    if name.endswith(".zst"):
        content = ZstdFile(file)
    elif name.endswith(".gz"):
        if not file.read(1):
            raise EOFError("it is empty, which no compressed file is")
        file.seek(0)
        content = gzip.GzipFile(fileobj=file)
        content.myfileobj = file  # which it closes
    return cast(BinaryIO, io.BufferedReader(content, 2**20))  # not every store reads by lines

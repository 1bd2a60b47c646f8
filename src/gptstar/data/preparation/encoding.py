"""Clean and tokenise text in several processes, and return the results in the order of the text.

The processes are started, not forked, so that they hold neither torch nor anything else that the parent has loaded,
and they end when the parent ends, even by `kill -9`.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from gptstar.data.inspection.grams import GramIndex
from gptstar.data.storage.manifest import token_dtype
from gptstar.data.text.clean import clean
from gptstar.data.text.pieces import pieces
from gptstar.data.text.records import Piece, Record
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError

TASK_CHARACTERS = 2**18
CHUNK_CHARACTERS = 2**13
"""Texts are tokenised in chunks of this size, which is faster and takes less memory than whole texts."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of a piece of a document.

    Attributes:
        tokens: `(token,)`, uint16 or uint32.
        n_bytes: size of the cleaned text.
        changed: cleaning changed the text.
        excluded: the text shares a run of words with a benchmark.
    """

    tokens: np.ndarray
    n_bytes: int
    changed: bool
    excluded: bool


@dataclass(frozen=True)
class Encoder:
    """Cleans a piece (if configured), tokenises it, and searches it for excluded runs of words."""

    tokenizer_json: str
    ftfy: bool
    exclude: GramIndex | None

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_json)

    def encode(self, batch: Sequence[Piece]) -> list[Encoded]:
        """Clean and tokenise pieces."""
        tokenizer = self._tokenizer
        texts = [clean(piece.text, piece.plain) if self.ftfy else piece.text for piece in batch]
        chunks = [list(pieces(text, CHUNK_CHARACTERS)) if tokenizer.can_be_cut else [text] for text in texts]
        tokens = iter(tokenizer.encode([chunk for text in chunks for chunk in text]))
        dtype = token_dtype(tokenizer.n_vocab)
        return [
            Encoded(
                np.concatenate([next(tokens) for _ in text_chunks]).astype(dtype),
                len(text.encode()),
                text != piece.text,
                self.exclude is not None and self.exclude.shares_a_gram(piece.before + text),
            )
            for piece, text, text_chunks in zip(batch, texts, chunks, strict=True)
        ]


class EncodingPool:
    """Runs an encoder in this process (one worker) or in several processes, each fed by a thread.

    Args:
        workers: number of processes; 1 works in this process, with the tokenizer's threads.
    """

    def __init__(self, encoder: Encoder, workers: int) -> None:
        self._encoder, self._workers = encoder, workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._of_thread = threading.local()
        self._threads = ThreadPoolExecutor(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def map(self, records: Iterable[Record]) -> Iterator[tuple[Record, Encoded | None]]:
        """Yield each record in order with its tokens, or with None if it is not text."""
        running: deque[tuple[list[Record], Future[list[Encoded]]]] = deque()
        for batch in _batches(records):
            texts = [record for record in batch if isinstance(record, Piece)]
            running.append((batch, self._threads.submit(self._encode, texts)))
            if len(running) > 2 * self._workers:
                yield from _joined(*running.popleft())
        while running:
            yield from _joined(*running.popleft())

    def _encode(self, batch: list[Piece]) -> list[Encoded]:
        if self._workers == 1 or not batch:
            return self._encoder.encode(batch)
        try:
            process = self._process()
            assert process.stdin is not None
            assert process.stdout is not None
            pickle.dump(batch, process.stdin, protocol=5)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(
                "a worker process died, probably out of memory: lower data.workers and repeat the command, which "
                "continues from the finished work"
            ) from error

    def _process(self) -> subprocess.Popen[bytes]:
        """Return this thread's process; start it at the first call."""
        if not hasattr(self._of_thread, "process"):
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "TOKENIZERS_PARALLELISM": "false",
            }
            command = [sys.executable, "-c", "from gptstar.data.preparation.encoding import serve; serve()"]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
            )
            self._processes.append(process)
            self._of_thread.process = process
            assert process.stdin is not None
            pickle.dump(self._encoder, process.stdin)
        return self._of_thread.process


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.text) if isinstance(record, Piece) else 64
        if characters >= TASK_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _joined(batch: list[Record], encoding: Future[list[Encoded]]) -> Iterator[tuple[Record, Encoded | None]]:
    encoded = iter(encoding.result())
    return ((record, next(encoded) if isinstance(record, Piece) else None) for record in batch)


def serve() -> None:
    """Run as a worker process: read batches from standard input, and write their tokens to standard output."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    parent_is_gone = EOFError, BrokenPipeError, KeyboardInterrupt, pickle.UnpicklingError
    with contextlib.suppress(*parent_is_gone):
        encoder: Encoder = pickle.load(source)
        while True:
            pickle.dump(encoder.encode(pickle.load(source)), sink, protocol=5)
            sink.flush()

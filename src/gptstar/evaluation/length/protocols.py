"""Protocols: they choose the tokens to score, and the context to read before each of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptstar.errors import DataError

LONG_STRETCHES = 8
"""A stretch's length in longest contexts, if not all text is read; with long stretches, few windows are partial."""


@dataclass(frozen=True)
class Window:
    """Tokens that are read in one go: `[start, stop)` of a document. The next token of each is its target.

    A stretch of targets that follow one another is the window that scores all of its targets.

    Attributes:
        scored: the number of targets that count, at the end of the window.
        at: the index of the first target that counts, among all targets of the study.
    """

    document: int
    start: int
    stop: int
    scored: int
    at: int

    @property
    def size(self) -> int:
        """The number of tokens in the window."""
        return self.stop - self.start


def stretches(sizes: np.ndarray, lengths: Sequence[int], limit: int | None, *, side_by_side: bool) -> list[Window]:
    """Choose the targets that every length scores: all of them, or stretches spread evenly over the text.

    Args:
        sizes: `(document,)`, int64: the number of targets of each document.
        lengths: the context lengths.
        limit: the most targets; a longer text is cut into stretches.
        side_by_side: whether windows don't overlap; then a stretch as long as the longest context holds whole windows
            of every length that divides it.

    Raises:
        DataError: no document is as long as the longest context.
    """
    longest, most = max(lengths), int(sizes.max(initial=0))
    if most < longest:
        raise DataError(
            f"no document has {longest:,} tokens, the longest {most:,}, so the longest context can't be filled: read "
            "shorter contexts, other text, or give documents=joined"
        )
    if limit is None or sizes.sum() <= limit:
        return _numbered((number, 0, size) for number, size in enumerate(sizes.tolist()))
    whole = side_by_side and all(longest % length == 0 for length in lengths)
    piece = longest if whole else LONG_STRETCHES * longest
    cut = [
        (number, start, min(piece, size - start))
        for number, size in enumerate(sizes.tolist())
        for start in range(0, size, piece)
    ]
    if limit <= piece:
        document, start, count = max(cut, key=lambda each: each[2])  # a short one would tell least
        return _numbered([(document, start, min(count, limit))])
    n_chosen = len(cut) * limit // int(sizes.sum())
    while True:  # it ends: one stretch is within the limit
        chosen = [cut[index] for index in _spread(len(cut), max(1, n_chosen))]
        excess = sum(count for _, _, count in chosen) - limit
        if excess <= 0:
            return _numbered(chosen)
        n_chosen -= max(1, excess // piece)


def last_blocks(sizes: np.ndarray, longest: int, targets: int, limit: int | None) -> list[Window]:
    """Choose targets with more than a whole context before them: blocks of them, spread evenly over the text.

    Args:
        sizes: `(document,)`, int64: the number of targets of each document.
        longest: the longest context; documents that are not longer have no such target.
        targets: the number of targets in a block.

    Raises:
        DataError: no document is longer than the longest context.
    """
    # A window ends with its targets and begins with the text's own tokens, not with the end-of-text before them.
    blocks = [
        (number, end - targets, targets)
        for number, size in enumerate(sizes.tolist())
        for end in range(longest, size, targets)
    ]
    if not blocks:
        raise DataError(
            f"fixed targets need documents longer than the longest context, {longest:,}; the longest here has "
            f"{int(sizes.max(initial=0)):,} tokens: read shorter contexts, or books"
        )
    n_chosen = len(blocks) if limit is None else max(1, limit // targets)
    return _numbered(blocks[index] for index in _spread(len(blocks), n_chosen))


def _spread(available: int, count: int) -> list[int]:
    """Choose `count` of the numbers below `available`, evenly spaced; all of them if there are no more."""
    count = min(count, available)
    return [int((index + 0.5) * available / count) for index in range(count)]


def overlapping(spans: Sequence[Window], length: int, stride: int) -> Iterator[Window]:
    """Yield windows of `length` tokens, one every `stride`, each scoring the targets that none before it did.

    Every target is scored once. The first window of a stretch gives its targets from 1 to all of its tokens before
    them; the others give at least `length - stride + 1`. With a stride of the length windows lie side by side.
    """
    for span in spans:
        done = 0
        for offset in range(0, span.size, stride):
            stop = min(offset + length, span.size)
            yield Window(span.document, span.start + offset, span.start + stop, stop - done, span.at + done)
            done = stop
            if done == span.size:
                break


def ending(spans: Sequence[Window], length: int) -> Iterator[Window]:
    """Yield windows of `length` tokens that end with the targets of a stretch.

    So each target has from `length - K` to `length - 1` tokens before it, where K is the stretch's number of targets.
    """
    for span in spans:  # the last target is token `stop`, which is not read
        yield Window(span.document, span.stop + 1 - length, span.stop, span.scored, span.at)


def split(spans: Sequence[Window], targets: int) -> Iterator[Window]:
    """Yield the stretches of targets in pieces of at most `targets`."""
    for span in spans:
        for start in range(0, span.size, targets):
            count = min(targets, span.size - start)
            first = span.start + start
            yield Window(span.document, first, first + count, count, span.at + start)


def assert_same_targets(spans: Sequence[Window], windows: Sequence[Window]) -> None:
    """Assert that the windows of a length score every target once, under its own number."""
    expected, scored = (np.hstack([_targets(window) for window in each]) for each in (spans, windows))
    scored = scored[:, np.argsort(scored[0], kind="stable")]
    assert np.array_equal(scored[0], expected[0]), "a target is scored twice or not at all"
    assert np.array_equal(scored, expected), "two lengths score different targets"


def _targets(window: Window) -> np.ndarray:
    """Return the number, document and token of each target that counts: `(3, target)`."""
    following = np.arange(window.scored)
    document = np.full(window.scored, window.document)
    return np.stack([window.at + following, document, window.stop + 1 - window.scored + following])


def _numbered(pieces: Iterable[tuple[int, int, int]]) -> list[Window]:
    spans, at = [], 0
    for document, start, count in pieces:
        spans.append(Window(document, start, start + count, count, at))
        at += count
    return spans

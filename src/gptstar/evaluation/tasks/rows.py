"""Rows of sequences with shared prefixes: a prefix is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORTH_SHARING = 8
"""A sequence with fewer tokens in common begins a row of its own."""

ROW_TOKENS = 1024
"""A row takes no further sequence beyond this: its attention grows with its square."""


@dataclass(frozen=True)
class Row:
    """A trie of sequences, its nodes in the order in which they were added.

    Attributes:
        tokens: `(node,)`, int64.
        positions: `(node,)`, int64: how deep each node lies, which is where its token stands in its sequences.
        paths: by number of the sequence, `(position,)`: its nodes.
        branched: whether any node has two successors; otherwise the row is one sequence read from its beginning.
    """

    tokens: np.ndarray
    positions: np.ndarray
    paths: dict[int, np.ndarray]
    branched: bool

    def seen(self) -> np.ndarray:
        """`(node, node)`, bool: each node sees those on its way from the beginning, and itself."""
        seen = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for path in self.paths.values():
            seen[path[:, None], path[None, :]] = path[:, None] >= path[None, :]  # nodes of a path are in order
        return seen


def rows_of(sequences: Sequence[Sequence[int]]) -> list[Row]:
    """Put sequences into rows, each with those that share a beginning worth sharing.

    Returns:
        The rows. Every sequence is in exactly one, and which does not depend on the order of the sequences.
    """
    order = sorted(range(len(sequences)), key=lambda number: (tuple(sequences[number]), number))
    rows: list[Row] = []
    building: _Building | None = None
    for number in order:
        sequence = np.asarray(sequences[number], dtype=np.int64)
        shared = 0 if building is None else _shared(building.last, sequence)
        if building is None or not building.takes(sequence, shared):
            if building is not None:
                rows.append(building.row())
            building, shared = _Building(), 0
        building.add(number, sequence, shared)
    return [*rows, building.row()] if building is not None else rows


class _Building:
    """A row as it grows. Sequences come sorted, so what the next one shares with any, it shares with the last."""

    def __init__(self) -> None:
        self.last = np.empty(0, dtype=np.int64)
        self._path = np.empty(0, dtype=np.int64)
        self._tokens: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._paths: dict[int, np.ndarray] = {}
        self._n_nodes = 0
        self._branched = False

    def takes(self, sequence: np.ndarray, shared: int) -> bool:
        fits = self._n_nodes + len(sequence) - shared <= max(ROW_TOKENS, len(sequence))
        return fits and shared >= min(WORTH_SHARING, len(sequence))

    def add(self, number: int, sequence: np.ndarray, shared: int) -> None:
        n_new = len(sequence) - shared
        self._branched |= shared < len(self.last)
        self._path = np.concatenate((self._path[:shared], np.arange(self._n_nodes, self._n_nodes + n_new)))
        self._tokens.append(sequence[shared:])
        self._positions.append(np.arange(shared, len(sequence)))
        self._paths[number] = self._path
        self._n_nodes += n_new
        self.last = sequence

    def row(self) -> Row:
        return Row(np.concatenate(self._tokens), np.concatenate(self._positions), self._paths, self._branched)


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(first), len(second))
    different = first[:length] != second[:length]
    place = int(different.argmax()) if length else 0
    return place if length and different[place] else length

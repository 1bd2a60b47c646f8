"""Rows of sequences with shared prefixes: a prefix is read once."""

from collections.abc import Mapping, Sequence
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
    """

    tokens: np.ndarray
    positions: np.ndarray
    paths: dict[int, np.ndarray]

    @property
    def branched(self) -> bool:
        """Whether any node has two successors; otherwise the row is one sequence read from its beginning."""
        return max(map(len, self.paths.values())) < len(self.tokens)

    def attention_mask(self) -> np.ndarray:
        """`(node, node)`, bool: each node attends to those on its way from the beginning, and to itself."""
        mask = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for path in self.paths.values():
            mask[path[:, None], path[None, :]] = path[:, None] >= path[None, :]  # nodes of a path are in order
        return mask


def rows_of(sequences: Sequence[Sequence[int]]) -> list[Row]:
    """Put sequences into rows, each with those that share a beginning worth sharing.

    Returns:
        The rows. Every sequence is in exactly one, and which does not depend on the order of the sequences.
    """
    groups: list[dict[int, int]] = []  # for each row, the tokens that each sequence shares with the one before
    last, n_nodes = np.empty(0, dtype=np.int64), 0
    # In sorted order, what a sequence shares with any earlier one, it shares with the last.
    for number in sorted(range(len(sequences)), key=lambda number: (tuple(sequences[number]), number)):
        sequence = np.asarray(sequences[number], dtype=np.int64)
        n_shared = _n_shared(last, sequence)
        fits = n_nodes + len(sequence) - n_shared <= max(ROW_TOKENS, len(sequence))
        if not groups or not fits or n_shared < min(WORTH_SHARING, len(sequence)):
            groups.append({})
            n_nodes = n_shared = 0
        groups[-1][number] = n_shared
        n_nodes += len(sequence) - n_shared
        last = sequence
    return [_row(sequences, group) for group in groups]


def _row(sequences: Sequence[Sequence[int]], group: Mapping[int, int]) -> Row:
    """Build a row of sequences in sorted order, by number, with the tokens that each shares with the one before."""
    path, n_nodes = np.empty(0, dtype=np.int64), 0
    tokens, positions, paths = [], [], {}
    for number, n_shared in group.items():
        sequence = np.asarray(sequences[number], dtype=np.int64)
        path = np.concatenate((path[:n_shared], np.arange(n_nodes, n_nodes + len(sequence) - n_shared)))
        n_nodes += len(sequence) - n_shared
        tokens.append(sequence[n_shared:])
        positions.append(np.arange(n_shared, len(sequence)))
        paths[number] = path
    return Row(np.concatenate(tokens), np.concatenate(positions), paths)


def _n_shared(first: np.ndarray, second: np.ndarray) -> int:
    """The number of tokens that two sequences begin with in common."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length

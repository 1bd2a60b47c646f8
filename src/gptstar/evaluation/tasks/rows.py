"""Rows of sequences with shared prefixes, so that the model reads each prefix once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WORTH_SHARING = 8
"""The fewest shared tokens with which a sequence joins a row; otherwise it begins a new row."""

ROW_TOKENS = 1024
"""The most tokens of a row with several sequences; the cost of attention grows with its square."""


@dataclass(frozen=True)
class Row:
    """A trie of sequences. Its nodes are in the order in which they were added.

    Attributes:
        tokens: `(node,)`, int64, the token of each node.
        positions: `(node,)`, int64, the depth of each node, which is its token's position in the sequences.
        paths: the nodes of each sequence, `(position,)`, by the sequence's index.
    """

    tokens: np.ndarray
    positions: np.ndarray
    paths: dict[int, np.ndarray]

    @property
    def branched(self) -> bool:
        """Whether any node has two successors; otherwise the row is a single sequence."""
        return max(map(len, self.paths.values())) < len(self.tokens)

    def attention_mask(self) -> np.ndarray:
        """Return the attention mask `(node, node)`, bool: each node attends to its ancestors and to itself."""
        mask = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for path in self.paths.values():
            mask[path[:, None], path[None, :]] = path[:, None] >= path[None, :]  # a path is in ascending order
        return mask


def rows_of(sequences: Sequence[Sequence[int]]) -> list[Row]:
    """Group sequences into rows by shared prefixes.

    Returns:
        The rows. Every sequence is in exactly one row, whatever the order of the sequences.
    """
    groups: list[
        dict[int, int]
    ] = []  # for each row, the number of tokens that each sequence shares with the previous one
    last, n_nodes = np.empty(0, dtype=np.int64), 0
    # In sorted order, the longest prefix shared with any earlier sequence is shared with the previous one.
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
    """Build a row from sorted sequences; `group` maps a sequence's index to the tokens shared with the previous one."""
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
    """Count the tokens of the longest common prefix."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length

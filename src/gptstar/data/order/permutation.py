"""The order of training data as a pure function of `(seed, position)`.

Position `p` of a run is block `permutation(p mod n)` of epoch `p div n`. The permutation is computed, not stored: there
is no index file and no shuffle buffer, and the position is the whole state of the data. The order of remote data
is in groups (`Grouping`), each of which reads few places.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

ROUNDS = 10
RUN_TOKENS = 2**18
"""Number of neighbouring tokens that a grouped order keeps together: half a megabyte justifies a request."""


def permute(indices: np.ndarray, n: int, key: bytes) -> np.ndarray:
    """Map indices by a keyed bijection of `range(n)`.

    A Feistel network permutes pairs `(left, right)` in `range(a) x range(b)`, with `a * b` just above `n`. A result
    outside `range(n)` is mapped again until it falls inside (cycle walking).

    Args:
        indices: integers in `[0, n)`, any shape; `n` up to 2**62.
        key: selects the bijection.

    Returns:
        int64, of the shape of `indices`.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3 and 5.
    """
    a = max(1, math.isqrt(n - 1) + 1) if n > 1 else 1
    b = -(-n // a)
    round_keys = [_number(bytes([number]), key) for number in range(ROUNDS)]

    def once(x: np.ndarray) -> np.ndarray:
        left: np.ndarray
        right: np.ndarray
        left, right = x // np.uint64(b), x % np.uint64(b)
        for number, round_key in enumerate(round_keys):
            if number % 2 == 0:
                left = (left + _mix(right, round_key) % np.uint64(a)) % np.uint64(a)
            else:
                right = (right + _mix(left, round_key) % np.uint64(b)) % np.uint64(b)
        return left * np.uint64(b) + right

    out = once(np.asarray(indices, dtype=np.uint64))
    while (outside := out >= n).any():
        out[outside] = once(out[outside])
    return out.astype(np.int64)


def _number(message: bytes, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(message, key=key, digest_size=8).digest(), "little")


def _mix(x: np.ndarray, key: int) -> np.ndarray:
    """Apply SplitMix64's finaliser to `x + key`: every input bit affects every output bit."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Grouping:
    """A grouped order: permutes runs of `run` neighbouring blocks, then blocks within groups of `runs` runs."""

    run: int
    runs: int

    @classmethod
    def of_tokens(cls, shuffle_tokens: int, block_tokens: int) -> "Grouping":
        """Make groups of at most `shuffle_tokens` tokens, but at least one run."""
        run = max(1, RUN_TOKENS // block_tokens)
        return cls(run, max(1, shuffle_tokens // (run * block_tokens)))

    @property
    def group(self) -> int:
        """Number of blocks in a group, except the last group of an epoch."""
        return self.run * self.runs

    def groups_at(self, indices: np.ndarray, n: int) -> np.ndarray:
        """Return the groups of indices of an epoch of `n` blocks; the last group includes the remainder."""
        return np.minimum(indices // self.group, max(1, -(-(n // self.run) // self.runs)) - 1)

    def bounds(self, group: int, n: int) -> tuple[int, int]:
        """Return the first index of a group, and the index after its last one."""
        last = int(self.groups_at(np.asarray(n - 1), n))
        return group * self.group, n if group == last else (group + 1) * self.group

    def permute(self, indices: np.ndarray, n: int, key: str) -> np.ndarray:
        """Map indices `(index,)` by a keyed bijection of `range(n)`; a group's images, int64, fill whole runs."""
        inside = np.array(indices, dtype=np.int64)
        groups = self.groups_at(inside, n)
        for group in np.unique(groups).tolist():
            first, end = self.bounds(group, n)
            here = groups == group
            inside[here] = first + permute(inside[here] - first, end - first, f"{key}/{group}".encode())
        return permute_runs(inside, n, self.run, key.encode())


def permute_runs(indices: np.ndarray, n: int, run: int, key: bytes) -> np.ndarray:
    """Map indices `(index,)` by a keyed bijection of `range(n)` that keeps runs of `run` neighbours together.

    The runs are permuted, the remaining `n % run` numbers come last, and everything is rotated by a keyed amount, so
    that the remainder differs between keys. So in the images, int64, 0 may follow `n - 1` within a run.
    """
    indices = np.asarray(indices, dtype=np.int64)
    whole = n // run
    out = indices.copy()
    moved = indices < whole * run
    out[moved] = permute(indices[moved] // run, whole, key) * run + indices[moved] % run
    return (out + _number(b"turn", key) % n) % n


def blocks_at(positions: np.ndarray, n_blocks: int, seed: int, grouping: Grouping | None = None) -> np.ndarray:
    """Return the block at each position of an endless run through `n_blocks` blocks, reshuffled every epoch.

    Args:
        positions: `(position,)`, non-negative integers, like the result.
        grouping: None allows any block anywhere in its epoch.
    """
    positions = np.asarray(positions, dtype=np.int64)
    epochs, indices = positions // n_blocks, positions % n_blocks
    out = np.empty_like(indices)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        key = f"{seed}/{epoch}"
        if grouping is None:
            out[here] = permute(indices[here], n_blocks, key=key.encode())
        else:
            out[here] = grouping.permute(indices[here], n_blocks, key)
    return out

"""The order of training data as a pure function of `(seed, position)`.

Position `p` of a run names block `permutation(p mod n)` of epoch `p div n`. The permutation is computed, not stored: no
index file, no shuffle buffer, and the state of the data is the position alone.
"""

import hashlib
import math

import numpy as np

ROUNDS = 10


def permute(indices: np.ndarray, n: int, key: bytes) -> np.ndarray:
    """A keyed bijection of `range(n)`.

    A Feistel network on pairs `(left, right)` in `range(a) x range(b)`, with `a * b` just above `n`; what falls outside
    `range(n)` is sent through again until it falls inside (cycle walking).

    Args:
        indices: integers in `[0, n)`, any shape; `n` up to 2**62.
        key: which bijection.

    Returns:
        int64, the shape of `indices`.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3 and 5.
    """
    a = max(1, math.isqrt(n - 1) + 1) if n > 1 else 1
    b = -(-n // a)
    round_keys = [
        int.from_bytes(hashlib.blake2b(bytes([number]), key=key, digest_size=8).digest(), "little")
        for number in range(ROUNDS)
    ]

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


def _mix(x: np.ndarray, key: int) -> np.ndarray:
    """SplitMix64's finaliser of `x + key`: every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def blocks_at(positions: np.ndarray, n_blocks: int, seed: int) -> np.ndarray:
    """Which block stands at each position of an endless run through `n_blocks` blocks, reshuffled every epoch.

    Args:
        positions: `(position,)`, non-negative integers.

    Returns:
        `(position,)`, int64, in `[0, n_blocks)`.
    """
    positions = np.asarray(positions, dtype=np.int64)
    epochs, indices = positions // n_blocks, positions % n_blocks
    out = np.empty_like(indices)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permute(indices[here], n_blocks, key=f"{seed}/{epoch}".encode())
    return out

"""Kinds of positions as their papers define them: float64, in NumPy, without a line of the package.

Parameters are given by the names that the state dict has for them, and inputs are those of the package's attention.
"""

import math
from collections.abc import Mapping
from decimal import Decimal, getcontext

import numpy as np

Arrays = Mapping[str, np.ndarray]
getcontext().prec = 60


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    bias: np.ndarray,
    rows: np.ndarray,
    seen: np.ndarray | None = None,
) -> np.ndarray:
    """Vaswani et al., 2017, equation 1, with a bias, for some queries: `(head, row, d_head)`.

    Args:
        query: `(head, position, d_head)`; the others likewise.
        bias: `(head, row, position)`.
        rows: `(row,)`, positions of the queries.
        seen: `(row, position)`, what `visible` returned; by default all keys up to the query's.
    """
    scores = query[:, rows] @ key.transpose(0, 2, 1) / math.sqrt(query.shape[2]) + bias
    scores[:, ~(visible(rows, key.shape[1]) if seen is None else seen)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def visible(rows: np.ndarray, n_positions: int, window: int | None = None, n_sinks: int = 0) -> np.ndarray:
    """Whether a query attends to a key: the last `window` up to its own, and the first `n_sinks`: `(row, position)`."""
    seen = np.zeros((len(rows), n_positions), dtype=bool)
    for number, row in enumerate(rows):
        seen[number, max(0, row + 1 - (window or n_positions)) : row + 1] = True
        seen[number, : min(n_sinks, row + 1)] = True
    return seen


def ssmax(query: np.ndarray, s: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Nakanishi, 2025: queries `(head, position, d_head)` times `s ln n`, for those of some rows."""
    scaled = query.copy()
    for row, n_keys in zip(rows, seen.sum(1), strict=True):
        scaled[:, row] *= s[:, None] * math.log(n_keys)
    return scaled


def alibi_slopes(n_heads: int) -> list[float]:
    """Press et al., 2022, as the paper's code computes them."""
    if math.log2(n_heads).is_integer():
        return [2.0 ** (-8.0 * (head + 1) / n_heads) for head in range(n_heads)]
    lower = 2 ** math.floor(math.log2(n_heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[0::2][: n_heads - lower]


def t5_bucket(distance: int) -> int:
    """Raffel et al., 2020, for 32 buckets and distances to 128, in 60 decimal digits."""
    if distance < 16:
        return distance
    octaves = Decimal(16) * (Decimal(distance) / 16).ln() / Decimal(8).ln()
    return min(31, 16 + int(octaves + Decimal("1e-40")))


def bias(kind: str, n_heads: int, rows: np.ndarray, n_positions: int, given: Arrays) -> np.ndarray:
    """What a kind adds to scores: `(head, row, position)`. `given` has its parameters, and FoX's input `x`."""
    distance = (rows[:, None] - np.arange(n_positions)).clip(0).astype(np.float64)
    by_head = np.array(alibi_slopes(n_heads))[:, None, None]
    if kind == "alibi":
        return -by_head * distance
    if kind == "log_alibi":
        return -by_head * np.log(1 + distance)
    if kind == "t5":
        buckets = np.array([t5_bucket(each) for each in range(n_positions)])
        return given["weight"][buckets[distance.astype(int)]].transpose(2, 0, 1)
    if kind == "kerple":  # Chi et al., 2022, the logarithmic kernel
        p, a = (given[name].clip(0.01)[:, None, None] for name in "pa")
        return -p * np.log(1 + a * distance)
    if kind == "fire":
        return fire(distance, rows, given)
    if kind == "fox":
        return fox(rows, given)
    return np.zeros((n_heads, *distance.shape))


def fire(distance: np.ndarray, rows: np.ndarray, given: Arrays) -> np.ndarray:
    """Li et al., 2023: `f(psi(i - j) / psi(max(i, L)))`, where f has one hidden layer of 32."""

    def psi(x: np.ndarray) -> np.ndarray:
        return np.log(abs(given["c"]) * x + 1)

    threshold = abs(given["multiplier"] * given["threshold"])
    x = psi(distance) / psi(np.maximum(rows, threshold))[:, None]
    out = np.zeros((len(given["out_bias"]), *x.shape)) + given["out_bias"][:, None, None]
    for unit in range(32):
        hidden = (given["hidden_weight"][unit, 0] * x + given["hidden_bias"][unit]).clip(0)
        out += given["out_weight"][:, unit, None, None] * hidden
    return out


def fox(rows: np.ndarray, given: Arrays) -> np.ndarray:
    """Lin et al., 2025: the logarithm of the product of forget gates from key + 1 to query."""
    logits = given["x"] @ given["gate.weight"].T + given["gate.bias"]  # (position, head)
    logs = -np.log1p(np.exp(-logits)).T  # of a sigmoid: (head, position)
    sums = np.zeros((len(logs), len(rows), logs.shape[1]))
    for number, row in enumerate(rows):  # summed from the query back, so that nothing large is taken off
        sums[:, number, :row] = logs[:, row:0:-1].cumsum(-1)[:, ::-1]
    return sums


def turned(kind: str, x: np.ndarray, p: float) -> np.ndarray:
    """Su et al., 2021: `(head, position, d_head)`, its pairs `(i, i + d_head / 2)` as complex numbers that turn.

    With p-RoPE (Barbero et al., 2024) all but the fastest `floor(p * d_head / 2)` stand still.
    """
    if kind not in ("rotary", "p_rope"):
        return x
    half = x.shape[2] // 2
    frequencies = np.array([10_000.0 ** (-2 * k / x.shape[2]) for k in range(half)])
    if kind == "p_rope":
        frequencies[math.floor(p * half) :] = 0
    pairs = x[..., :half] + 1j * x[..., half:]
    pairs = pairs * np.exp(1j * np.arange(x.shape[1])[:, None] * frequencies)
    return np.concatenate((pairs.real, pairs.imag), axis=-1)


def sinusoids(n_positions: int, d_model: int) -> np.ndarray:
    """Vaswani et al., 2017, section 3.5: `(position, d_model)`."""
    table = np.zeros((n_positions, d_model))
    for k in range(d_model // 2):
        angles = np.arange(n_positions) / 10_000.0 ** (2 * k / d_model)
        table[:, 2 * k], table[:, 2 * k + 1] = np.sin(angles), np.cos(angles)
    return table

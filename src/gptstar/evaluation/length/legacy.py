"""The estimator that GPT* was published with, to the letter, so that its tables can be repeated.

Text is one stream of tokens, without any end-of-text, cut into windows of T. The last, partial window is skipped. A
window's loss is the mean over its T - 1 targets. Of WikiText-2 that mean, times T, is summed and divided by all tokens,
those of the skipped window too: a curve over T dips where much is skipped. Of enwik8 and text8 the windows are averaged
and the average is multiplied by tokens per byte. The original read by float16 autocast: `evaluation.dtype=float16`.

Source: fattorib/Little-GPT, `benchmark/benchmark_metrics.py`, after Hugging Face's "Perplexity of fixed-length models".
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from gptstar.data.storage.stream import TokenStream
from gptstar.data.text.readers import form_of
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.evaluation.length.figures import perplexity_of
from gptstar.evaluation.length.protocols import Window
from gptstar.evaluation.length.text import Text, encode, find, plain_text, source_of_files, texts_of
from gptstar.evaluation.statistics.intervals import Interval

Metric = Literal["perplexity", "bits_per_byte"]

LAST_BYTES = 5_000_000
"""Of enwik8 and text8: their test set."""


def legacy_text(
    patterns: Sequence[str],
    tokenizer: Tokenizer,
    metric: Metric,
    *,
    column: str | None = None,
    last_bytes: int | None = None,
    max_tokens: int | None = None,
) -> tuple[Text, int]:
    """The stream that the original read, and its bytes.

    For perplexity, rows are joined by two line breaks: those of Parquet and JSON lines, or the lines of a raw file as
    the Hub's `wikitext-2-raw-v1` has them, blank ones empty and others with their line break.

    Raises:
        DataError: as `texts_of`.
    """
    files = find(patterns)
    if metric == "perplexity":
        rows = [row for address in files for row in _rows(address, column, last_bytes)]
        whole = "\n\n".join(rows)
    else:
        whole = "".join(text for address in files for text in texts_of(address, column, last_bytes or LAST_BYTES))
    tokens = encode(tokenizer, [whole])[0][:max_tokens]
    n_bytes = len(whole.encode()) if max_tokens is None else int(tokenizer.token_bytes[tokens].sum())
    name = ", ".join(address.rpartition("/")[2] for address in files)
    return Text(name, source_of_files(files), (TokenStream([tokens]),), tokenizer.token_bytes), n_bytes


def _rows(address: str, column: str | None, last_bytes: int | None) -> list[str]:
    if form_of(address) in ("jsonl", "parquet"):
        return list(texts_of(address, column, last_bytes))
    lines = plain_text(address, last_bytes).split("\n")
    ended = [f"{line}\n" for line in lines[:-1]] + lines[-1:] * bool(lines[-1])
    return [line if line.strip() else "" for line in ended]


def legacy_windows(n_tokens: int, length: int) -> list[Window]:
    """Whole windows of `length` tokens, each with `length - 1` targets.

    Raises:
        DataError: there is none.
    """
    if n_tokens < length:
        raise DataError(f"the text has {n_tokens:,} tokens, less than one window of {length:,}: read shorter contexts")
    starts = range(0, n_tokens - length + 1, length)
    return [
        Window(0, start, start + length - 1, length - 1, number * (length - 1)) for number, start in enumerate(starts)
    ]


def legacy_figures(
    losses: np.ndarray, length: int, n_tokens: int, n_bytes: int, metric: Metric
) -> tuple[Interval, Interval, Interval]:
    """Loss, perplexity and bits per byte as published, without intervals.

    Args:
        losses: `(target,)`, in nats, of all whole windows.
        n_tokens, n_bytes: of the whole text.
    """
    means = losses.reshape(-1, length - 1).astype(np.float64).mean(axis=1)  # (window,)
    value = float(means.sum() * length / n_tokens if metric == "perplexity" else means.mean())
    loss = Interval(value, math.nan, math.nan, "none")
    return loss, perplexity_of(loss), replace(loss, value=value / math.log(2) * n_tokens / n_bytes)
